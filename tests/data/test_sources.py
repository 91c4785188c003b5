"""Which files are datasets: links, loops, suffixes in any case, notices, and what is left out."""

import pytest

from data.formats import SourceFile
from data.prepare import PrepareConfig, prepare
from data.sources import find_datasets


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_files_outside_of_the_output(tmp_path):
    touch(tmp_path, "a.jsonl", "out/tokenizer/vocab.txt")
    assert find_datasets(tmp_path, "", tmp_path / "out") == (["a.jsonl"], "")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match="no training file"):
        find_datasets(tmp_path, "", tmp_path / "out")


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    touch(source, "real/a.jsonl", "z.txt")
    touch(elsewhere, "deep/b.tsv")
    (source / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(source)  # a loop through two folders
    (source / "real" / "loop").symlink_to(source / "real")
    (source / "again").symlink_to(source / "real")  # sorts before real, whose own name is kept
    (source / "file.txt").symlink_to(elsewhere / "deep" / "b.tsv")
    (source / "broken.jsonl").symlink_to(tmp_path / "gone")
    names, left_out = find_datasets(source, "", tmp_path / "out")
    assert names == ["file.txt", "linked/deep/b.tsv", "real/a.jsonl", "z.txt"]
    for name in ("again", "real/loop", "linked/back", "broken.jsonl"):
        assert f"{name} (" in left_out


def test_what_is_left_out_is_named(tmp_path):
    touch(tmp_path, "a.csv", "b.json", "c.jsonl.zst", "d.parquet", "e", "LICENSE.txt", "ReadMe.txt", "README.md",
          "copying.lesser.txt", "sub/Licence.TXT.gz", "f.jsonl")
    names, left_out = find_datasets(tmp_path, "", tmp_path / "out")
    assert names == ["f.jsonl"]
    assert "1 .csv" in left_out and "1 .zst" in left_out and "3 .txt" in left_out
    assert "a.csv" in left_out and "LICENSE.txt" in left_out
    assert "\n" not in left_out
    (tmp_path / "f.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no training file in .*left out.*a\.csv"):
        find_datasets(tmp_path, "", tmp_path / "out")


def test_many_are_counted(tmp_path):
    touch(tmp_path, "a.txt", *(f"{i:03}.csv" for i in range(30)))
    assert find_datasets(tmp_path, "", tmp_path / "out")[1].endswith("009.csv and 20 more")


def test_suffixes_in_any_case(tmp_path):
    names = ["A.JSONL", "B.Tsv.GZ", "c.TXT", "licenses_of_cars.jsonl", "noticeboard.txt"]
    touch(tmp_path, *names)
    assert find_datasets(tmp_path, "", tmp_path / "out") == (names, "")
    assert [SourceFile(tmp_path / name).syntax for name in names] == ["json", "tsv", "text", "json", "text"]


def test_data_config_names_files(tmp_path):
    touch(tmp_path, "a.jsonl", "b.csv", "notice.txt")
    config = tmp_path / "config"
    config.write_text('[{"name": "notice.txt", "weight": 1}]')
    assert find_datasets(tmp_path, str(config), tmp_path / "out") == (["notice.txt"], "")
    config.write_text('[{"name": "b.csv", "weight": 1}]')
    with pytest.raises(ValueError, match=r"b\.csv is no training file"):
        find_datasets(tmp_path, str(config), tmp_path / "out")


@pytest.mark.parametrize("data_dir", [".", "source", "source/../source"])
def test_the_output_is_another_folder(tmp_path, data_dir):
    touch(tmp_path, "source/a.jsonl")
    with pytest.raises(ValueError, match="choose another --data_dir"):
        prepare(PrepareConfig(str(tmp_path / "source"), "x", str(tmp_path / data_dir)))
    touch(tmp_path, "file")
    with pytest.raises(ValueError, match="file is a file"):
        prepare(PrepareConfig(str(tmp_path / "source"), "x", str(tmp_path / "file")))
