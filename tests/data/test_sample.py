"""The bundled sample: whole, licensed, small, of every kind, and without a text that is scored."""

import gzip
import json
import pathlib

import pytest

from data.cut_sample import OPEN_STS_SOURCES, PARTS, cut_sample, normalised
from data.examples import RawExample
from data.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY
from tests.texts import read_examples

SAMPLE = REPOSITORY / "data" / "sample"
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def training() -> dict[str, list[RawExample]]:
    entries = json.loads((SAMPLE / "data_config.json").read_text())
    return {entry["name"]: [e for _, e in read_examples(SAMPLE / "train" / entry["name"])] for entry in entries}


def sts_rows() -> list[list[str]]:
    return [line.split("\t") for line in (SAMPLE / "sts_dev.tsv").read_text().splitlines()[1:]]


def held_out() -> list[list[str]]:
    with gzip.open(SAMPLE / "heldout.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def content(path: pathlib.Path) -> bytes:
    """A file's bytes, unpacked: how they are packed differs from one zlib to another."""
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


def training_texts(training) -> set[str]:
    return {normalised(text) for examples in training.values() for example in examples for text in example.texts}


def test_every_kind_is_there_and_counts_agree(training):
    entries = json.loads((SAMPLE / "data_config.json").read_text())
    assert {path.name for path in (SAMPLE / "train").iterdir()} == set(training)
    for entry in entries:
        examples = training[entry["name"]]
        assert all(isinstance(example, RawExample) for example in examples)  # no bad line
        assert len(examples) == entry["lines"] and entry["weight"] > 0
    assert {example.kind for examples in training.values() for example in examples} == {
        "pair", "triplet", "set", "lists"
    }


def test_size_and_licences(training):
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < MAX_BYTES
    readme = (SAMPLE / "README.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in readme.splitlines() if line.startswith("| train/")}
    assert set(rows) == {f"train/{name}" for name in training}
    for part in PARTS:
        row = rows[f"train/{part.name}.jsonl.gz"]
        assert part.licence in row and part.origin in row and "CC BY" in row
        assert f"{len(training[f'{part.name}.jsonl.gz']):,}" in row
    assert "STS-B dev, openly licensed part" in readme


def test_scored_texts_are_not_trained_on(training):
    texts = training_texts(training)
    assert not texts & {normalised(text) for row in sts_rows() for text in row[:2]}
    pairs = held_out()
    held_out_texts = [normalised(text) for pair in pairs for text in pair]
    assert len(pairs) == 1000 and len(set(held_out_texts)) == 2000  # each candidate is one text
    assert not texts & set(held_out_texts)


def test_sts_rows_are_the_openly_licensed_ones():
    rows = sts_rows()
    assert len(rows) == 625
    assert all(row[3] == "dev" and row[4].startswith(OPEN_STS_SOURCES) and 0 <= float(row[2]) <= 5 for row in rows)


def test_sts_rows_equal_the_benchmark(shared_data, training):
    with open(shared_data / "eval" / "stsb.tsv") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    dev = [row for row in rows if row[3] == "dev"]
    assert sts_rows() == [row for row in dev if "/images/" in row[4] or "/answers-forums/" in row[4]]
    assert not training_texts(training) & {normalised(text) for row in rows for text in row[:2]}


def test_sample_texts_come_from_their_sources(shared_data, training):
    """Nothing is reworded: each text of the sample is a text of the class A file it is said to come from."""
    for part in PARTS:
        with gzip.open(shared_data / part.source, "rt") as file:
            rows = [json.loads(line) for line in file]
        values = [value for row in rows for value in (row.values() if isinstance(row, dict) else row)]
        source = {value.strip() for value in values if isinstance(value, str)}
        assert {text for example in training[f"{part.name}.jsonl.gz"] for text in example.texts} <= source


def test_the_script_cuts_the_same_sample(shared_data, tmp_path):
    cut_sample(shared_data, tmp_path / "sample")
    names, cut_names = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (SAMPLE, tmp_path / "sample")
    )
    assert names == cut_names
    for name in names:
        if name.name != "tokenizer.json":  # its trainer breaks ties in no fixed order
            assert content(tmp_path / "sample" / name) == content(SAMPLE / name), name


def test_tokenizer_and_model_fit(training):
    tokenizer = load_tokenizer(SAMPLE / "model")
    config = json.loads((SAMPLE / "model" / "config.json").read_text())
    assert config["vocab_size"] == tokenizer.vocab_size == 8192
    assert (tokenizer.pad_id, tokenizer.prefix_id, tokenizer.suffix_id) == (0, 2, 3)
    texts = [text for row in sts_rows() for text in row[:2]]
    tokens = [token for text in tokenizer.encode(texts) for token in text.tolist()]
    assert tokens.count(1) < 0.01 * len(tokens)  # [UNK]
    assert len(tokens) < 1.4 * sum(len(text.split()) for text in texts) + 2 * len(texts)


def test_transformers_reads_the_tokenizer(peer):
    texts = ["A plane is taking off.", "What's café?"]
    found = peer(
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(arguments['folder'])\n"
        "result = [tokenizer(text)['input_ids'] for text in arguments['texts']]\n",
        folder=str(SAMPLE / "model"), texts=texts,
    )
    assert found == [[2, *tokens.tolist(), 3] for tokens in load_tokenizer(SAMPLE / "model").encode(texts)]
