"""Wrong flags, folders and files: an error that says what to change, and nothing written is lost."""

import json
import os
import signal
import sys
import time

import pytest

from data.mine.filter import passes
from data.mine.filter.filter import FilterConfig, filter_files
from flags import Error
from tests.conftest import REPOSITORY
from tests.data.mine.filter.toys import read, run, write

FILES = {"a.jsonl": [["q", "p"], ["r", "s"]]}


def test_wrong_folders(tmp_path):
    write(tmp_path / "train", FILES)
    source = str(tmp_path / "train")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/mine.txt").write_text("x")
    write(tmp_path / "empty", {"x.md": b"x"})
    write(tmp_path / "only_train", {"x.tsv": [b"text\tsplit".decode(), "a b\ttrain"]})
    write(tmp_path / "prepared", {"manifest.json": json.dumps({"format": 1, "tokenizer": {}, "datasets": []}).encode()})
    for flags, message in (
        ({"source_dir": str(tmp_path / "no")}, "is not a folder"),
        ({"source_dir": str(tmp_path / "empty")}, "no training file in"),
        ({"source_dir": str(tmp_path / "prepared")}, "tokens and no texts. Filter the training files"),
        ({"output": source}, "are one folder, or one holds the other"),
        ({"output": f"{source}/out"}, "are one folder, or one holds the other"),
        ({"output": str(tmp_path)}, "are one folder, or one holds the other"),
        ({"output": str(tmp_path / "foreign")}, r"foreign holds files that were not written by a run \(mine.txt\)"),
        ({"output": str(tmp_path / "train/a.jsonl")}, "is a file"),
        ({"evaluation_dir": (str(tmp_path / "no"),)}, "--evaluation_dir=.*no does not exist"),
        ({"evaluation_dir": (str(tmp_path / "empty"),)}, "has no evaluation file: names end in"),
        ({"evaluation_dir": (str(tmp_path / "only_train"),)}, "no text in them, or only those of --skip_splits=train"),
        ({"evaluation_dir": (source,)}, "which is a training file too"),
    ):
        with pytest.raises(ValueError, match=message):
            filter_files(FilterConfig(**{"source_dir": source, "output": str(tmp_path / "out"), "workers": 1} | flags))
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "foreign/mine.txt").read_text() == "x"


def test_wrong_flags(tmp_path, run_main):
    for flags, message in (
        ({"order": ("b.jsonl",)}, "--order names b.jsonl, which is no data set: did you mean a.jsonl?"),
        ({"order": ("a.jsonl", "a.jsonl")}, "names a data set twice"),
        ({"columns": ("quiry=a",)}, "--columns: 'quiry=a' is not ROLE=COLUMN"),
        ({"columns": ("query=a", "positive=b"), "tsv": "parallel"}, "give one of them"),
    ):
        with pytest.raises(Error) as error:
            run(tmp_path, FILES, **flags)
        assert message in str(error.value)
    done = run_main("filter", f"--source_dir={tmp_path}/train", f"--output={tmp_path}/out", "--ngram_share=1.5",
                    check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("main.py filter: flag --ngram_share=1.5")


def test_an_output_of_another_command_is_not_replaced(tmp_path):
    write(tmp_path / "out", {"x": b"x", ".allpairs-files.json": b'["x", ".allpairs-files.json"]'})
    with pytest.raises(ValueError, match="was not written by filter"):
        run(tmp_path, FILES)


def test_bad_lines_are_counted_or_an_error(tmp_path):
    lines = b'["a", "b"]\n["", "c"]\n["d"]\nno\n["e", "f"]\n\n["g", "h"]\n["i", "j"]\n'
    with pytest.raises(ValueError, match=r"a\.jsonl: 3 of 7 lines are bad, more than --max_bad_share=0.01 allows: "):
        run(tmp_path, {"a.jsonl": lines})
    kept, report = run(tmp_path, {"a.jsonl": lines}, max_bad_share=0.5)
    assert kept == {"a.jsonl.gz": [["a", "b"], ["e", "f"], ["g", "h"], ["i", "j"]]}
    assert (report["datasets"][0]["lines"], sum(report["datasets"][0]["bad_lines"].values())) == (7, 3)


def test_nothing_is_left_of_a_data_set(tmp_path, capsys):
    kept, report = run(tmp_path, FILES | {"b.jsonl": [["Q", "P"]]})
    assert list(kept) == ["a.jsonl.gz"] and report["datasets"][1]["file"] == ""
    assert "b.jsonl: nothing is left" in capsys.readouterr().err
    assert [each["name"] for each in json.loads((tmp_path / "out/data_config.json").read_text())] == ["a.jsonl.gz"]


def test_a_long_set_of_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "MOST_POSITIONS", 3)
    files = {"a.jsonl": [{"set": ["a", "b"]}, {"set": ["c", "d", "e", "f"]}]}
    with pytest.raises(ValueError, match=r"a\.jsonl:2: the line has 4 texts: --duplicates=texts compares at most 3"):
        run(tmp_path, files, duplicates="texts")
    assert len(run(tmp_path, files)[0]["a.jsonl.gz"]) == 2


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """The second run does not scan again; the output is that of a run that was not stopped."""
    def stop(*arguments):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(passes, "rewrite", stop)
        with pytest.raises(OSError, match="the disk is gone"):
            run(tmp_path, FILES, {"e.txt": ["some text"]})
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.filter").exists()
    with monkeypatch.context() as patch:
        patch.setattr(passes, "scan", stop)
        filter_files(FilterConfig(source_dir=str(tmp_path / "train"), evaluation_dir=(str(tmp_path / "eval"),),
                                  output=str(tmp_path / "out"), workers=1, memory=1))
    assert read(tmp_path / "out") == {"a.jsonl.gz": FILES["a.jsonl"]}
    assert not (tmp_path / ".out.filter").exists()


def test_sources_stay_as_they_are(tmp_path):
    write(tmp_path / "train", FILES)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "train").iterdir()}
    run(tmp_path, {}, {"e.txt": ["q q"]})
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "train").iterdir()} == before


def test_ctrl_c_is_one_line(tmp_path, processes):
    write(tmp_path / "train", {f"{name}.jsonl": [[f"{name} {number} " * 20, f"p {number}"] for number in range(60_000)]
                               for name in "ab"})
    running = processes.Popen(
        [sys.executable, "main.py", "filter", f"--source_dir={tmp_path}/train", f"--output={tmp_path}/out",
         "--workers=2"], cwd=REPOSITORY, stderr=processes.PIPE, text=True)
    for _ in range(200):
        if (tmp_path / ".out.filter").exists() and any(os.scandir(tmp_path / ".out.filter")):
            break
        time.sleep(0.05)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    error = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "Traceback" not in error
    assert error.splitlines()[-1] == "main.py filter: stopped by Ctrl-C"
    assert not (tmp_path / "out").exists()
    assert read(tmp_path / "out") == {}
