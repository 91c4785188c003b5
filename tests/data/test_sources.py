"""Which files are datasets: links, loops, suffixes in any case, notices, and what is left out."""

import pytest

from data.data_config import Entry
from data.prepare import PrepareConfig, prepare
from data.source_file import SourceFile
from data.sources import check_files, find_datasets


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_files_outside_of_the_output(tmp_path):
    touch(tmp_path, "a.jsonl", "out/tokenizer/vocab.txt")
    assert find_datasets(tmp_path, tmp_path / "out") == (["a.jsonl"], "")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match="no training file"):
        find_datasets(tmp_path, tmp_path / "out")


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
    names, left_out = find_datasets(source, tmp_path / "out")
    assert names == ["file.txt", "linked/deep/b.tsv", "real/a.jsonl", "z.txt"]
    for name in ("again", "real/loop", "linked/back", "broken.jsonl"):
        assert f"{name} (" in left_out


def test_what_is_left_out_is_named(tmp_path):
    touch(tmp_path, "a.doc", "b.json", "c.jsonl.zip", "d.arrow", "e", "LICENSE.txt", "ReadMe.txt", "README.md",
          "copying.lesser.txt", "sub/Licence.TXT.gz", "f.jsonl")
    names, left_out = find_datasets(tmp_path, tmp_path / "out")
    assert names == ["f.jsonl"]
    assert "1 .doc" in left_out and "1 .zip" in left_out and "3 .txt" in left_out
    assert "a.doc" in left_out and "LICENSE.txt" in left_out
    assert "\n" not in left_out
    (tmp_path / "f.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no training file in .*left out.*a\.doc"):
        find_datasets(tmp_path, tmp_path / "out")


def test_many_are_counted(tmp_path):
    touch(tmp_path, "a.txt", *(f"{i:03}.doc" for i in range(30)))
    assert find_datasets(tmp_path, tmp_path / "out")[1].endswith("009.doc and 20 more")


def test_suffixes_in_any_case(tmp_path):
    names = ["A.JSONL", "B.Tsv.GZ", "c.TXT", "licenses_of_cars.jsonl", "noticeboard.txt"]
    touch(tmp_path, *names)
    assert find_datasets(tmp_path, tmp_path / "out") == (names, "")
    assert [SourceFile(tmp_path / name).syntax for name in names] == ["json", "tsv", "text", "json", "text"]


def entries_of(*names, lines=None):
    return [Entry(name, lines=lines) for name in names]


def test_data_config_names_files(tmp_path):
    touch(tmp_path, "a.jsonl", "b.doc", "notice.txt", "test.parquet")
    entries = entries_of("notice.txt", "test.parquet")
    assert check_files(tmp_path, "c.json", tmp_path / "out", entries, False) == (entries, "")
    with pytest.raises(ValueError, match=r"c\.json: b\.doc is no training file: names end in \.jsonl"):
        check_files(tmp_path, "c.json", tmp_path / "out", entries_of("b.doc"), True)


def test_missing_files_are_listed_with_their_lines(tmp_path):
    touch(tmp_path, "a.jsonl")
    entries = [*entries_of("a.jsonl", "d/b.jsonl.gz", lines=1234), *entries_of("c.jsonl")]
    with pytest.raises(ValueError) as error:
        check_files(tmp_path, "c.json", tmp_path / "out", entries, False)
    first, second, last = str(error.value).splitlines()
    assert first == f"missing {tmp_path}/d/b.jsonl.gz: 1,234 lines"
    assert second == f"missing {tmp_path}/c.jsonl: unknown lines"
    assert last == (f"c.json: 2 of its 3 files, of 1,234 lines, are missing; {tmp_path} has a.jsonl: add them, or set "
                    "--allow_missing")
    present, notice = check_files(tmp_path, "c.json", tmp_path / "out", entries, True)
    assert present == entries[:1] and notice.endswith("are missing: they are left out") and notice.count("\n") == 2
    with pytest.raises(ValueError, match=r"2 of its 2 files.* name another --source_dir"):
        check_files(tmp_path, "c.json", tmp_path / "out", entries[1:], True)


HUB_CONFIGS = """---
license: mit
configs:
- config_name: pair
  default: true
  data_files:
  - split: train
    path: pair/train-*
  - split: test
    path: pair/test-*
- config_name: folders
  data_files:
    train: ["deep/**/a.jsonl", "one.jsonl.gz"]
    validation: [deep/x.jsonl]
- config_name: all
  data_files: all/?.csv
- config_name: unnamed
  data_dir: unnamed
---
# A data set
"""
HUB_FILES = {  # name -> whether it is of the training split
    "pair/train-00000-of-00002.parquet": True, "pair/train-00001-of-00002.parquet": True,
    "pair/test-00000-of-00001.parquet": False, "pair/train-1/a.parquet": False,
    "deep/a.jsonl": True, "deep/b/c/a.jsonl": True, "deep/x.jsonl": False, "one.jsonl.gz": True,
    "all/a.csv": True, "all/bc.csv": False, "unnamed/x.jsonl": True, "unnamed/validation.jsonl": False,
    "elsewhere.jsonl": False,
}


@pytest.mark.parametrize("below", ["", "hub/set/"])
def test_hub_folders_give_their_training_split(tmp_path, below):
    touch(tmp_path, *(below + name for name in HUB_FILES))
    (tmp_path / below / "README.md").write_text(HUB_CONFIGS)
    names, left_out = find_datasets(tmp_path, tmp_path / "out")
    assert set(names) == {below + name for name, is_train in HUB_FILES.items() if is_train}
    assert "6 of other splits" in left_out and f"{below}deep/x.jsonl (not of the training split)" in left_out


@pytest.mark.parametrize("header", ["license: mit\n", "configs:\n- config_name: default\n", "a: 1\r\n"])
def test_hub_folders_without_data_files_go_by_names(tmp_path, header):
    names = ["contest.jsonl", "data/train-0.parquet", "latest.csv"]
    touch(tmp_path, *names, "data/test-0.parquet", "validation/a.csv", "Dev.jsonl", "test1.jsonl", "x_eval.tsv")
    (tmp_path / "README.md").write_bytes(f"---\n{header}---\n".encode())
    assert find_datasets(tmp_path, tmp_path / "out")[0] == names
    (tmp_path / "README.md").write_text("# No header\n---\na: 1\n---\n")
    assert len(find_datasets(tmp_path, tmp_path / "out")[0]) == 8


@pytest.mark.parametrize("header, reason", [
    ("configs: [", "header is not YAML"), ("[" * 2000, "header is not YAML"), ("a: 2026-13-45", "header is not YAML"),
    ("configs: 3", "configs"), ("configs: [3]", "configs"),
    ("configs:\n- data_files:\n  - split: train\n", "configs"), ("configs:\n- data_files: 3", "configs"),
    ("configs:\n- data_files:\n  - path: 3", "configs"), ("configs:\n- data_dir: [a]", "configs"),
])
def test_bad_hub_headers_are_named(tmp_path, header, reason):
    touch(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(ValueError, match=rf"README\.md: .*{reason}.*--data_config"):
        find_datasets(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("data_dir", [".", "source", "source/../source"])
def test_the_output_is_another_folder(tmp_path, data_dir):
    touch(tmp_path, "source/a.jsonl")
    with pytest.raises(ValueError, match="choose another --data_dir"):
        prepare(PrepareConfig(str(tmp_path / "source"), "x", str(tmp_path / data_dir)))
    touch(tmp_path, "file")
    with pytest.raises(ValueError, match="file is a file"):
        prepare(PrepareConfig(str(tmp_path / "source"), "x", str(tmp_path / "file")))
