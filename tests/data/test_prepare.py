"""prepare on files written by hand and real ones: what is in the shards, bad input, skipping, killing, full disks."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tokenizers import models

import data.writer
from data.formats import Layout
from data.prepare import PrepareConfig, prepare
from data.shards import open_dataset, read_dataset_manifest, read_manifest, text_id
from data.tokenizer import TextTokenizer, bert_tokenizer, load_tokenizer
from data.writer import Block, tokenise_block
from tests.conftest import REPOSITORY

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "##s"]
PAIRS = [["one red cat", "two reds"], ["green birds", "one bird"], ["blue dog", "three blue dogs"]] * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """A model folder that has a tokenizer of a few words."""
    return write_tokenizer(tmp_path_factory.mktemp("model"), WORDS)


def write_tokenizer(folder: pathlib.Path, words: list[str]) -> pathlib.Path:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    TextTokenizer(bert_tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))).to_folder(folder)
    return folder


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source", tmp_path / "out"


def write_lines(path: pathlib.Path, lines: list) -> None:
    """Lines that are bytes are written as they are, others as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


def run_prepare(folders, model, **options) -> None:
    source, out = folders
    prepare(PrepareConfig(str(source), str(model), str(out), **({"workers": 1} | options)))


def test_every_format_with_its_texts_tokens_and_ids(folders, model):
    source, out = folders
    write_lines(source / "pairs.jsonl.gz", PAIRS)
    write_lines(source / "deep" / "triplets.jsonl", [["one", "two", "three"], {"texts": ["red", "blue", "cat"]}])
    write_lines(source / "sets.jsonl", [{"set": ["one", "two", "three", "red"]}])
    scored = {"query": "one", "pos": ["two", "red"], "neg": ["cat"], "pos_scores": [1, 2]}
    write_lines(source / "scored.jsonl", [scored])
    write_lines(source / "columns.tsv.gz", [b"head\ttail", b"one\tred cat"])
    write_lines(source / "lines.txt", [b"one dog", b"two dogs"])
    write_lines(source / "README.md", ["no training file"])
    run_prepare(folders, model, tsv_header=True, workers=2)

    tokenizer = load_tokenizer(model)
    expected = {
        "pairs.jsonl.gz": ("pair", 120, ["one red cat", "two reds"]),
        "deep/triplets.jsonl": ("triplet", 2, ["one", "two", "three"]),
        "sets.jsonl": ("set", 1, ["one", "two", "three", "red"]),
        "scored.jsonl": ("lists", 1, ["one", "two", "red", "cat"]),
        "columns.tsv.gz": ("pair", 1, ["one", "red cat"]),
        "lines.txt": ("pair", 2, ["one dog", "one dog"]),
    }
    assert {dataset["name"] for dataset in read_manifest(out)["datasets"]} == set(expected)
    assert read_manifest(out)["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    for name, (kind, count, texts) in expected.items():
        reader = open_dataset(out, name)
        example = reader.read([0])[0]
        assert (reader.kind, len(reader), example.kind) == (kind, count, kind)
        assert reader.has_negatives == (name in ("deep/triplets.jsonl", "scored.jsonl"))
        assert [text.text_id for text in example.texts] == [text_id(text) for text in texts]
        for text, tokens in zip(example.texts, tokenizer.encode(texts)):
            np.testing.assert_array_equal(text.tokens, tokens)
            assert text.full_length == len(tokens)
    np.testing.assert_array_equal(open_dataset(out, "scored.jsonl").read([0])[0].scores, [1, 2, np.nan])
    weights = {entry["name"]: entry["weight"] for entry in json.loads((out / "data_config.json").read_text())}
    assert weights["pairs.jsonl.gz"] == 11 and weights["lines.txt"] == 1  # square roots of 120 and 2
    assert load_tokenizer(out / "tokenizer").fingerprint == tokenizer.fingerprint


def test_parallel_columns(folders, model):
    """A line is its source and the translations it has; the flag and the header's names are in the manifest."""
    source, out = folders
    lines = [b"en\tde\tfr\r", b"one\ttwo\tthree\r", b"red\t\tblue", b"cat\t\t", b"dog\tbird"]
    write_lines(source / "a.tsv.gz", lines)
    write_lines(source / "b.jsonl", PAIRS)
    run_prepare(folders, model, tsv="parallel", tsv_header=True, max_bad_share=0.3)
    reader = open_dataset(out, "a.tsv.gz")
    assert (reader.kind, reader.has_negatives, reader.manifest["columns"]) == ("lists", False, ["en", "de", "fr"])
    assert reader.manifest["skipped"]["first"] == [[4, "no translation"]]
    expected = [("one", "two", "three"), ("red", "blue"), ("dog", "bird")]
    found = [tuple(text.text_id for text in example.texts) for example in reader.read(range(3))]
    assert found == [tuple(map(text_id, texts)) for texts in expected]
    assert [example.num_positives for example in reader.read(range(3))] == [2, 1, 1]
    options = {name: read_dataset_manifest(out, name)["options"] for name in ("a.tsv.gz", "b.jsonl")}
    assert options["a.tsv.gz"]["tsv"] == "parallel" and options["b.jsonl"]["tsv"] == "texts"
    (source / "b.jsonl").unlink()
    run_prepare(folders, model, tsv_header=True, max_bad_share=0.8)
    manifest = read_dataset_manifest(out, "a.tsv.gz")
    assert (manifest["kind"], manifest["examples"], manifest["columns"]) == ("triplet", 1, ["en", "de", "fr"])


def test_order_shards_and_statistics(folders, model, monkeypatch):
    """Lines keep their order over blocks, processes and shards; the manifest's sums are those of a plain count."""
    source, out = folders
    lines = [[f"{'one ' * (1 + i % 9)}cat {i}", f"dog {i}"] for i in range(3000)]
    write_lines(source / "a.jsonl.gz", lines)
    real_blocks = data.writer.SourceFile.blocks
    monkeypatch.setattr(data.writer.SourceFile, "blocks", lambda self: real_blocks(self, 5000))
    run_prepare(folders, model, records_per_shard=700, max_tokens_per_text=6, workers=3)
    manifest = read_dataset_manifest(out, "a.jsonl.gz")
    assert [shard["records"] for shard in manifest["shards"]] == [700, 700, 700, 700, 200]
    reader = open_dataset(out, "a.jsonl.gz")
    examples = reader.read(range(3000))
    assert [example.query.text_id for example in examples] == [text_id(a) for a, _ in lines]
    lengths = [len(tokens) for tokens in load_tokenizer(model).encode([text for line in lines for text in line])]
    assert manifest["tokens"] == sum(lengths) and manifest["texts"] == 6000
    assert manifest["truncated_texts"] == sum(length > 6 for length in lengths) > 0
    assert max(len(text.tokens) for example in examples for text in example.texts) == 6
    assert [text.full_length for example in examples for text in example.texts] == lengths
    edges, counts = manifest["length_histogram"].values()
    np.testing.assert_array_equal(counts, np.histogram(lengths, [*edges, np.inf])[0])


def test_bad_lines_are_counted_and_named(folders, model, capsys):
    source, out = folders
    bad = {
        3: (b'["\xff", "one"]', "not valid UTF-8"), 10: (b"[", "not valid JSON"), 50: (["one", ""], "empty text"),
        51: (["one", 2], "a text is not a string"), 60: (["one", "two", "three"], "a triplet in a file of pairs"),
        70: ({"set": ["one", "two"]}, "a set in a file of pairs"), 80: (["one", "\u0000"], "a text without any token"),
        90: (["one"], "a list must have 2 or 3 texts"),
    }
    lines = [bad[number][0] if number in bad else PAIRS[number] for number in range(1, 101)]
    lines += [b"", b"  \t ", b"\r"]  # blank lines are neither examples nor bad
    write_lines(source / "a.jsonl", lines)
    run_prepare(folders, model, max_bad_share=0.08)
    manifest = read_dataset_manifest(out, "a.jsonl")
    assert manifest["examples"] == 92 and manifest["skipped"]["count"] == 8 and manifest["lines"] == 100
    assert manifest["skipped"]["first"] == [[number, reason] for number, (_, reason) in bad.items()]
    printed = capsys.readouterr().out
    assert "skipped a.jsonl:3: not valid UTF-8" in printed and "skipped a.jsonl: 3 more" in printed
    message = r"a\.jsonl: 8 of 100 lines are bad \(8.00%\).*max_bad_share=0.07.*a\.jsonl:3: not valid UTF-8"
    with pytest.raises(ValueError, match=message):
        run_prepare(folders, model, max_bad_share=0.07)


@pytest.mark.parametrize("first, other, reason", [
    (["a", "b", "c"], ["a", "b"], "a pair in a file of triplets"),
    ({"query": "q", "pos": ["a"], "neg": ["b"]}, {"query": "q", "pos": ["a"]}, "lists in a file of lists with"),
    ({"query": "q", "pos": ["a"]}, {"query": "q", "pos": ["a"], "neg": ["b"]}, "with negatives in a file of lists"),
])
def test_mixed_kinds(model, first, other, reason):
    lines = "\n".join(map(json.dumps, [first, other, first])).encode()
    file_kind = "triplet" if isinstance(first, list) else "lists with negatives" if "neg" in first else "lists"
    result = tokenise_block(Block(1, lines, Layout("json"), file_kind, 10), load_tokenizer(model))
    assert len(result.records) == 2 and result.bad_lines[0][0] == 2 and reason in result.bad_lines[0][1]


def test_files_that_have_no_example(folders, model):
    source, out = folders
    write_lines(source / "a.jsonl", [["one"], 3])
    with pytest.raises(ValueError, match=r"a\.jsonl: no example in 2 lines: .*a\.jsonl:1: a list must have"):
        run_prepare(folders, model, max_bad_share=0.99)
    (source / "a.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jsonl: the file is empty"):
        run_prepare(folders, model)
    (source / "a.jsonl").unlink()
    (source / "b.jsonl.gz").write_bytes(gzip.compress(b'["one","two"]\n' * 999)[:-10])
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz: truncated gzip"):
        run_prepare(folders, model)
    assert not (out / "manifest.json").exists()


def test_a_text_of_a_megabyte(folders, model):
    source, out = folders
    write_lines(source / "a.jsonl", [["one " * 250_000, "two"], ["x" * 1_000_000, "two"]])
    run_prepare(folders, model)
    examples = open_dataset(out, "a.jsonl").read([0, 1])
    assert len(examples[0].query.tokens) == 512 and examples[0].query.full_length > 512
    assert read_dataset_manifest(out, "a.jsonl")["truncated_texts"] == 1
    assert len(examples[1].query.tokens) == 1  # BERT's rule: a word above 100 characters is [UNK]


def write_config(path: pathlib.Path, entries: list) -> str:
    path.write_text(json.dumps(entries))
    return str(path)


def test_data_config(folders, model, tmp_path, capsys):
    source, out = folders
    write_lines(source / "a.jsonl", PAIRS)
    write_lines(source / "d" / "b.jsonl", PAIRS[:30])
    entries = [{"name": "d/b.jsonl", "lines": 30, "weight": 3}, {"name": "a.jsonl", "lines": 7, "weight": 1}]
    run_prepare(folders, model, data_config=write_config(tmp_path / "c.json", entries))
    errors = capsys.readouterr().err
    assert 'a.jsonl: "lines" is 7, the file has 120' in errors and "b.jsonl:" not in errors
    entries[1]["lines"] = 120
    assert json.loads((out / "data_config.json").read_text()) == entries
    unknown = write_config(tmp_path / "u.json", [{"name": "b.jsonl", "weight": 1}])
    with pytest.raises(ValueError, match=r"u\.json: 1 of its 1 files are missing; .* has a\.jsonl, d/b\.jsonl: "):
        run_prepare(folders, model, data_config=unknown)
    for weight in (0, -1, 1.5, None):
        bad = write_config(tmp_path / "w.json", [{"name": "a.jsonl", "weight": weight}])
        with pytest.raises(ValueError, match=r"w\.json: .*a\.jsonl.*weight.*positive integer"):
            run_prepare(folders, model, data_config=bad)


def test_finished_datasets_are_skipped(folders, model, capsys):
    """Only what changed is written again: a new time with equal bytes is no change, other bytes or options are."""
    source, out = folders
    for name in ("a.jsonl", "b.jsonl"):
        write_lines(source / name, PAIRS)
    run_prepare(folders, model)

    def written_again(**options) -> set[str]:
        paths = list(out.glob("*/manifest.json"))
        before = [path.stat().st_ino for path in paths]
        run_prepare(folders, model, **options)
        return {path.parent.name for path, inode in zip(paths, before) if path.stat().st_ino != inode}

    assert written_again() == set()
    assert capsys.readouterr().out.count("(was finished)") == 2
    os.utime(source / "a.jsonl", (1, 1))
    assert written_again() == set()
    write_lines(source / "a.jsonl", [["one two", "two one"], *PAIRS[1:]])
    assert written_again() == {"a.jsonl"}
    assert open_dataset(out, "a.jsonl").read([0])[0].query.text_id == text_id("one two")
    shard = next((out / "b.jsonl").glob("*.arrayrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert written_again() == {"b.jsonl"}
    assert written_again(max_tokens_per_text=2) == {"a.jsonl", "b.jsonl"}


def test_another_tokenizer_is_refused(folders, model, tmp_path):
    source, _ = folders
    write_lines(source / "a.jsonl", PAIRS)
    run_prepare(folders, model)
    other = write_tokenizer(tmp_path / "other", WORDS[::-1])
    found, given = load_tokenizer(model).fingerprint, load_tokenizer(other).fingerprint
    with pytest.raises(ValueError, match=f"another tokenizer: .*{found}.*{given}"):
        run_prepare(folders, other)
    with pytest.raises(ValueError, match="no tokenizer in"):
        run_prepare(folders, source)
    run_prepare(folders, model)  # the refusals left the folder usable


def test_unwritable_and_full_folders_are_named(folders, model, monkeypatch, tmp_path):
    source, out = folders
    write_lines(source / "a.jsonl", PAIRS)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=f"cannot write in {tmp_path}/file/out"):
        run_prepare((source, tmp_path / "file" / "out"), model)
    real_writer = data.writer.open_writer
    monkeypatch.setattr(data.writer, "open_writer", lambda path: real_writer(pathlib.Path("/dev/full")))
    with pytest.raises(OSError, match=rf"cannot write in {out}/a\.jsonl\.partial: .*No space left on device"):
        run_prepare(folders, model)
    monkeypatch.undo()
    run_prepare(folders, model)
    assert len(open_dataset(out, "a.jsonl")) == 120


@pytest.mark.parametrize("flag, wanted", [
    ("max_tokens_per_text=0", "at least 1 and at most 65535"), ("records_per_shard=0", "at least 1"),
    ("max_bad_share=1.1", "at least 0 and at most 1"), ("workers=-1", "at least 0"),
])
def test_bad_flags(run_main, tmp_path, flag, wanted):
    done = run_main("prepare", f"--source_dir={tmp_path}", "--tokenizer=x", f"--data_dir={tmp_path}/o", f"--{flag}",
                    check=False)
    assert done.returncode == 2 and wanted in done.stderr.splitlines()[-1]


def test_killed_midway_then_the_same_command_completes(folders, model, processes, tmp_path):
    """kill -9 at three moments: nothing half-written is taken for finished, and no worker process survives."""
    source, out = folders
    sizes = {"a.jsonl": 5_000, "b.jsonl": 5_000, "c.jsonl": 90_000}  # c is some seconds' work, in several blocks
    for name, size in sizes.items():
        write_lines(source / name, [[f"one cat {name} {i}", f"two dogs {i}"] for i in range(size)])
    command = [sys.executable, "main.py", "prepare", f"--source_dir={source}", f"--tokenizer={model}",
               f"--data_dir={out}", "--workers=2"]
    moments = [out / "a.jsonl.partial", out / "a.jsonl" / "manifest.json", out / "c.jsonl.partial"]
    for moment in moments:
        process = processes.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not moment.exists():
            time.sleep(0.005)
        workers = child_processes(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
        for manifest in out.glob("*.jsonl/manifest.json"):
            assert json.loads(manifest.read_text())["examples"] == sizes[manifest.parent.name]
        assert_end(workers)
    processes.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert not list(out.rglob("*.partial"))
    for name, size in sizes.items():
        reader = open_dataset(out, name)
        assert len(reader) == size
        assert reader.read([size - 1])[0].query.text_id == text_id(f"one cat {name} {size - 1}")
    run_prepare((source, tmp_path / "at_once"), model)
    assert files_below(out) == files_below(tmp_path / "at_once")


def files_below(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def child_processes(pid: int) -> list[int]:
    return [int(child) for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children")  # of each thread
            for child in children.read_text().split()]


def assert_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 15
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{alive} outlive the process that started them"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_command_says_what_is_wrong_and_needs_no_jax(folders, model, run_main):
    source, out = folders
    (source / "a.jsonl").write_bytes(b"")
    flags = (f"--source_dir={source}", f"--tokenizer={model}", f"--data_dir={out}")
    done = run_main("prepare", *flags, check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("a.jsonl: the file is empty")
    code = "import sys, data.prepare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_real_file(shared_data, tmp_path):
    """Each example of a real file is in the shards, token by token as the tokenizer gives it."""
    model = REPOSITORY / "data" / "sample" / "model"
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "titles.jsonl.gz"
    path.symlink_to(shared_data / "train" / "stackexchange_linked_titles.jsonl.gz")
    run_prepare((tmp_path / "source", tmp_path / "out"), model)
    with gzip.open(path, "rt") as file:
        pairs = [json.loads(line) for line in file]
    reader = open_dataset(tmp_path / "out", "titles.jsonl.gz")
    expected = load_tokenizer(model).encode([text.strip() for pair in pairs for text in pair])
    found = [text.tokens for example in reader.read(range(len(pairs))) for text in example.texts]
    assert len(found) == len(expected) == 2 * 1173
    for found_tokens, expected_tokens in zip(found, expected):
        np.testing.assert_array_equal(found_tokens, expected_tokens)


def test_keys_that_are_not_used_are_named_once(folders, model, capsys):
    source, out = folders
    bge = {"query": "one", "pos": ["two"], "neg": ["red"], "prompt": "Represent", "type": "normal"}
    write_lines(source / "bge.jsonl", [bge] * 50)
    write_lines(source / "texts.jsonl", [{"texts": ["one", "two"], "label": 3}, {"texts": ["red", "blue"], "id": 1}])
    write_lines(source / "sets.jsonl", [{"set": ["one", "two"], "source": "x"}])
    run_prepare(folders, model)
    printed = capsys.readouterr().out
    assert printed.count("keys that are not used") == 3 and "bge.jsonl: keys that are not used: prompt, type" in printed
    assert read_dataset_manifest(out, "texts.jsonl")["ignored_keys"] == ["id", "label"]
    assert read_dataset_manifest(out, "bge.jsonl")["skipped"]["count"] == 0
    assert open_dataset(out, "bge.jsonl").kind == "lists" and open_dataset(out, "sets.jsonl").kind == "set"


def test_the_umask_is_respected(folders, model):
    source, out = folders
    write_lines(source / "a.jsonl.gz", PAIRS)
    command = [sys.executable, "main.py", "prepare", f"--source_dir={source}", f"--tokenizer={model}", "--workers=1"]
    for umask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        data_dir = out / f"{umask:03o}"
        subprocess.run([*command, f"--data_dir={data_dir}"], cwd=REPOSITORY, check=True, capture_output=True,
                       umask=umask)
        modes = {path.name: path.stat().st_mode & 0o777 for path in data_dir.rglob("*") if path.is_file()}
        assert len(modes) >= 5 and set(modes.values()) == {mode}, modes
        assert {path.stat().st_mode & 0o777 for path in data_dir.rglob("*") if path.is_dir()} == {0o777 & ~umask}


def test_ctrl_c_ends_it_with_one_line_and_the_same_command_resumes(folders, model):
    source, out = folders
    write_lines(source / "a.jsonl", PAIRS)
    write_lines(source / "b.jsonl", [[f"one cat {i}", f"two dogs {i}"] for i in range(90_000)])
    command = [sys.executable, "main.py", "prepare", f"--source_dir={source}", f"--tokenizer={model}",
               f"--data_dir={out}", "--workers=2"]
    for moment in (out / "tokenizer", out / "b.jsonl.partial"):
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while process.poll() is None and not moment.exists():
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and "Traceback" not in errors
        assert errors.splitlines()[-1] == "main.py prepare: stopped by Ctrl-C"
    finished = (out / "a.jsonl" / "manifest.json").stat().st_ino
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert "(was finished)" in done.stdout and (out / "a.jsonl" / "manifest.json").stat().st_ino == finished
    assert len(open_dataset(out, "b.jsonl")) == 90_000
