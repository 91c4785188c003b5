"""The framework: inputs, parts, resuming, workers, the output's bytes, refusals."""

import concurrent.futures
import gzip
import json
import threading

import pytest

from data.mine import mine as command
from data.mine import work
from data.mine.mine import MineConfig, mine
from tests.data.mine.toys import PAIRS, WORDS, ToySettings


def write_jsonl(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def read_output(folder, name):
    with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def run(source, output, *inputs, workers=1, memory=64, **rules):
    mine(source, MineConfig(tuple(map(str, inputs)), str(output), workers, memory, ToySettings(**rules)))
    return json.loads((output / "manifest.json").read_text())


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def questions(tmp_path):
    """A folder with three files of 300 questions each; question i has the answer i % 7."""
    for part in range(3):
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", [
            {"q": f"question {part} {i}", "a": f"answer {i % 7}", "site": "ab"[i % 2]} for i in range(300)])
    return tmp_path / "in"


def test_pairs(questions, tmp_path):
    write_jsonl(questions / "3.jsonl", [
        {"q": "x", "a": "too short"}, {"q": "", "a": "b"}, {"q": "bad \ud800\0", "a": "b"}])
    (questions / "notes.txt").write_text("left out")
    manifest = run(PAIRS, tmp_path / "out", questions)
    assert read_output(tmp_path / "out", "pairs/all") == [["bad \ufffd", "b"]]
    a = read_output(tmp_path / "out", "pairs/a")
    assert a == [[f"question {part} {i}", f"answer {i % 7}"] for part in range(3) for i in range(0, 300, 2)]
    assert manifest["left_out"] == {"question shorter than --min_length": 2}
    assert {name: entry["lines"] for name, entry in manifest["outputs"].items()} == {
        "pairs/a": 450, "pairs/b": 450, "pairs/all": 1}
    assert [each["path"][-7:] for each in manifest["inputs"]] == [f"{i}.jsonl" for i in range(4)]
    assert manifest["licence"] == "CC0" and len(manifest["inputs"][0]["sha256"]) == 64


def test_empty_texts_are_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "abc", "a": " \0 "}, {"q": "abc", "a": "d"}])
    assert run(PAIRS, tmp_path / "out", path)["left_out"] == {"no training example: empty text": 1}


@pytest.mark.parametrize("source", [PAIRS, WORDS])
def test_workers_do_not_change_the_bytes(questions, tmp_path, source):
    run(source, tmp_path / "one", questions, workers=1)
    run(source, tmp_path / "two", questions, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_records_of_one_key_are_joined(questions, tmp_path):
    write_jsonl(questions / "3.jsonl", [{"q": "alone", "a": "answer 8"}])
    manifest = run(WORDS, tmp_path / "out", questions)
    found = {tuple(value["set"]) for value in read_output(tmp_path / "out", "sets")}
    assert found == {tuple(f"question {part} {i}" for part in range(3) for i in range(300) if i % 7 == rest)
                     for rest in range(7)}
    assert manifest["left_out"] == {"answer of one question": 1}


def test_partitions_are_divided_to_fit(questions, tmp_path, monkeypatch):
    """Less memory than one partition takes: the same groups in the same order. Groups that never fit are counted."""
    for part in range(3):
        write_jsonl(questions / f"{part}.jsonl", [
            {"q": f"question {part} {i}", "a": f"answer {i // 2}"} for i in range(1000)])
    run(WORDS, tmp_path / "much", questions, memory=64)
    original = command.groups.groups_of
    monkeypatch.setattr(command.groups, "groups_of", lambda *arguments: original(
        *arguments[:3], 20_000, *arguments[4:]))
    run(WORDS, tmp_path / "little", questions, memory=64)
    assert read_output(tmp_path / "little", "sets") == read_output(tmp_path / "much", "sets")
    assert len(read_output(tmp_path / "much", "sets")) == 500
    write_jsonl(questions / "4.jsonl", [{"q": f"question {i}", "a": "answer 1"} for i in range(1000)])
    manifest = run(WORDS, tmp_path / "large", questions, memory=64)
    assert manifest["left_out"] == {command.groups.TOO_LARGE: 1}
    assert len(read_output(tmp_path / "large", "sets")) == 499


def test_a_failed_run_goes_on(questions, tmp_path, monkeypatch):
    """The first run fails at the third file; the second reads that file only, and the bytes are those of one run."""
    run(PAIRS, tmp_path / "whole", questions)
    (questions / "2.jsonl").rename(tmp_path / "aside")
    (questions / "2.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"2\.jsonl: line 1 is not JSON"):
        run(PAIRS, tmp_path / "out", questions)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "aside").rename(questions / "2.jsonl")
    mined = []
    original = command._mine_unit
    monkeypatch.setattr(command, "_mine_unit", lambda source, unit, *rest: mined.append(unit[0].name) or original(
        source, unit, *rest))
    run(PAIRS, tmp_path / "out", questions)
    assert mined == ["2.jsonl"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_parts_of_changed_inputs_are_mined_again(questions, tmp_path):
    (questions / "2.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"2\.jsonl: line 1 is not JSON"):
        run(PAIRS, tmp_path / "out", questions)
    for name in ("0.jsonl", "2.jsonl"):
        write_jsonl(questions / name, [{"q": f"changed {name}", "a": "answer"}])
    run(PAIRS, tmp_path / "out", questions)
    assert read_output(tmp_path / "out", "pairs/all") == [[f"changed {name}.jsonl", "answer"] for name in "02"]


def test_a_finished_output_is_mined_again_only_after_changes(questions, tmp_path, capsys):
    out = tmp_path / "out"
    run(PAIRS, out, questions)
    before = (out / "manifest.json").stat().st_mtime_ns
    run(PAIRS, out, questions)
    (questions / "0.jsonl").touch()
    run(PAIRS, out, questions)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("is finished") == 2
    assert run(PAIRS, out, questions, min_length=14)["left_out"]
    write_jsonl(questions / "0.jsonl", [{"q": "only", "a": "one"}])
    for name in ("1.jsonl", "2.jsonl"):
        (questions / name).unlink()
    run(PAIRS, out, questions)
    assert sorted(files_of(out)) == [".allpairs-files.json", "manifest.json", "pairs/all.jsonl.gz"]


def test_outputs_that_are_refused(questions, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run(PAIRS, tmp_path / "file", questions)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"not written by mine \(thesis.txt\)"):
        run(PAIRS, tmp_path / "own", questions)
    run(PAIRS, tmp_path / "out", questions)
    with pytest.raises(ValueError, match="mined from pairs, not words"):
        run(WORDS, tmp_path / "out", questions)


def test_a_wrong_file_leaves_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text("text")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 1 is not JSON"):
        run(PAIRS, tmp_path / "out", tmp_path / "a.jsonl")
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_refused(questions, tmp_path):
    with pytest.raises(ValueError, match="--input=nowhere: there is no such file"):
        run(PAIRS, tmp_path / "out", "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no file in this folder is one that pairs expects: questions\.jsonl"):
        run(PAIRS, tmp_path / "out", tmp_path / "empty")
    run(PAIRS, questions / "out", questions)
    assert len(run(PAIRS, questions / "out", questions, min_length=3)["inputs"]) == 3  # not its own output
    assert len(run(PAIRS, tmp_path / "out", f"{questions}/[01].jsonl", questions / "1.jsonl")["inputs"]) == 2


def test_progress_does_not_wait_for_a_process_that_was_stopped_while_it_counted():
    with work.processes(2) as pool, concurrent.futures.ThreadPoolExecutor(2) as threads:
        released, held = threading.Event(), threading.Event()

        def hold():
            with pool.counter.get_lock():
                held.set()
                released.wait()

        threads.submit(hold)
        held.wait()
        try:
            assert threads.submit(pool.bytes_read).result(timeout=5) == 0
        finally:
            released.set()
