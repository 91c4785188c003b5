"""Each published format on lines written by hand, each kind of bad line, and the real files."""

import gzip
import json
import math
import random

import pytest

from data.examples import BadLine, RawExample
from data.formats import parse_line, split_lines, syntax_of
from data.source_file import SourceFile
from tests.texts import read_examples


def parse(value) -> RawExample:
    return parse_line(json.dumps(value).encode(), "json")


def test_lists_and_texts():
    assert parse(["a", "b"]) == RawExample("pair", ("a", "b"), 1)
    assert parse([" a ", "b\n"]) == RawExample("pair", ("a", "b"), 1)
    assert parse(["a", "b", "c"]) == RawExample("triplet", ("a", "b", "c"), 1)
    assert parse(["a", "b", "c"]).has_negatives
    assert parse({"texts": ["a", "b"]}) == parse(["a", "b"])
    assert parse({"texts": ["a", "b", "c"]}) == parse(["a", "b", "c"])


def test_set_without_repeated_texts():
    example = parse({"set": ["a", "b", "a ", "c"]})
    assert example == RawExample("set", ("a", "b", "c"), 2)
    assert not example.has_negatives


def test_query_lists_with_and_without_scores():
    assert parse({"query": "q", "pos": ["a", "b"]}) == RawExample("lists", ("q", "a", "b"), 2)
    example = parse({"query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1, 0.5], "neg_scores": [-2.0]})
    assert example == RawExample("lists", ("q", "a", "b", "c"), 2, (1.0, 0.5, -2.0))
    assert example.has_negatives and example.file_kind == "lists with negatives"
    partly = parse({"query": "q", "pos": ["a"], "neg": ["c"], "pos_scores": [3]})
    assert partly.scores[0] == 3.0 and math.isnan(partly.scores[1])


def test_tsv_and_text():
    assert parse_line(b"a\tb\n", "tsv") == RawExample("pair", ("a", "b"), 1)
    assert parse_line(b"a\tb c\td\r\n", "tsv") == RawExample("triplet", ("a", "b c", "d"), 1)
    assert parse_line('"a"\té'.encode(), "tsv").texts == ('"a"', "é")  # quotes are text
    assert parse_line(b" one text \r\n", "text") == RawExample("pair", ("one text", "one text"), 1)


def test_parallel_columns():
    assert parse_line(b"a\tb\n", "parallel") == RawExample("lists", ("a", "b"), 1)
    assert parse_line(b" a \tb\t \td e\t\r\n", "parallel") == RawExample("lists", ("a", "b", "d e"), 2)
    assert not parse_line(b"a\tb\tc", "parallel").has_negatives
    many = parse_line("\t".join(map(str, range(60))).encode(), "parallel")
    assert many.texts == tuple(map(str, range(60))) and many.num_positives == 59


@pytest.mark.parametrize("line, reason", [
    (b"a", "no translation"), (b"a\t\t \r\n", "no translation"), (b"\tb\tc", "empty text"), (b"\t\t", "empty line"),
])
def test_bad_parallel_lines(line, reason):
    with pytest.raises(BadLine, match=reason):
        parse_line(line, "parallel")


@pytest.mark.parametrize("line, reason", [
    (b'["a", "\xff"]', "not valid UTF-8"),
    (b"", "empty line"),
    (b"  \r\n", "empty line"),
    (b'["a", "b"', "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'"a"', "neither a list nor an object"),
    (b"3", "neither a list nor an object"),
    (b'["a"]', "must have 2 or 3 texts"),
    (b'["a", "b", "c", "d"]', "must have 2 or 3 texts"),
    (b'["a", 3]', "not a string"),
    (b'["a", null]', "not a string"),
    (b'["a", ["b"]]', "not a string"),
    (b'["a", ""]', "empty text"),
    (b'["a", " \\u3000\\t"]', "empty text"),
    (b'["a", "\\ud800"]', "surrogate"),
    (b'{"set": ["a"]}', "fewer than two different"),
    (b'{"set": ["a", " a"]}', "fewer than two different"),
    (b'{"set": "ab"}', "not a list"),
    (b'{"query": "q"}', "must have"),
    (b'{"anchor": "q", "positive": "a"}', 'must have .*not "anchor", "positive"'),
    (b'{"query": "q", "pos": "a"}', "not a list"),
    (b'{"query": "q", "pos": []}', '"pos" is empty'),
    (b'{"query": ["q"], "pos": ["a"]}', "not a string"),
    (b'{"query": "q", "pos": ["a"], "pos_scores": [1, 2]}', "one score for each"),
    (b'{"query": "q", "pos": ["a"], "pos_scores": ["1"]}', "not a list of numbers"),
    (b'{"query": "q", "pos": ["a"], "pos_scores": [true]}', "not a list of numbers"),
    (b'{"texts": "ab"}', "not a list"),
    (b'{"texts": ["a", "b"], "set": ["a", "b"]}', "must have"),
])
def test_bad_json_lines(line, reason):
    with pytest.raises(BadLine, match=reason):
        parse_line(line, "json")


@pytest.mark.parametrize("line, reason", [
    (b"a", "2 or 3"), (b"a\tb\tc\td", "2 or 3"), (b"a\t", "empty text"), (b"\n", "empty line"), (b"\xff\tb", "UTF-8"),
])
def test_bad_tsv_lines(line, reason):
    with pytest.raises(BadLine, match=reason):
        parse_line(line, "tsv")


def test_syntax_by_name():
    names = {"a.jsonl": "json", "d/a.jsonl.gz": "json", "a.tsv": "tsv", "a.tsv.gz": "tsv", "a.txt.gz": "text"}
    assert {name: syntax_of(name) for name in names} == names
    assert syntax_of("a.json") is None and syntax_of("a.gz") is None


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last_newline", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_blocks_are_whole_lines_and_numbered(tmp_path, ending, last_newline, suffix):
    """Blocks of any size put together are the file, and each line has its own number."""
    generator = random.Random(7)
    lines = [f"{i}\t" + "ü" * generator.randrange(1, 50) for i in range(1, 200)]
    content = (ending.join(lines) + (ending if last_newline else "")).encode()
    path = tmp_path / f"a.tsv{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    for block_bytes in (1, 37, 1000, 1 << 20):
        numbered = [
            (number, parse_line(line, "tsv").texts[0])
            for first, block in SourceFile(path).blocks(block_bytes)
            for number, line in enumerate(split_lines(block), start=first)
        ]
        assert numbered == [(i, str(i)) for i in range(1, 200)]


def test_source_counts_its_bytes(tmp_path):
    import zlib

    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))  # two members, as `cat` makes them
    source = SourceFile(path)
    assert b"".join(block for _, block in source.blocks()) == b"one\ntwo\n"
    assert source.bytes_read == path.stat().st_size
    assert source.crc32 == zlib.crc32(path.read_bytes())


def test_byte_order_mark_and_header(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbfleft\tright\na\tb\n")
    assert [example.texts for _, example in read_examples(path)] == [("left", "right"), ("a", "b")]
    assert [(n, example.texts) for n, example in read_examples(path, tsv_header=True)] == [(2, ("a", "b"))]
    text = tmp_path / "a.txt"
    text.write_bytes(b"x\n")
    assert len(list(read_examples(text, tsv_header=True))) == 1  # the header is a matter of .tsv
    source = SourceFile(path, tsv_header=True, tsv="parallel")
    assert (source.syntax, len(list(source.blocks())), source.columns) == ("parallel", 1, ["left", "right"])
    assert SourceFile(text, tsv="parallel").syntax == "text"  # and so is --tsv


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "b.tsv.gz"])
def test_empty_file_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name}: the file is empty"):
        list(SourceFile(path).blocks())
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b""))
        with pytest.raises(ValueError, match=f"{name}: the file is empty"):
            list(SourceFile(path).blocks())


def test_damaged_gzip_is_named(tmp_path):
    whole = gzip.compress("\n".join(json.dumps([str(i), str(i * i)]) for i in range(5000)).encode())
    path = tmp_path / "a.jsonl.gz"
    for cut in (5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: truncated gzip"):
            list(SourceFile(path).blocks(1000))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: (damaged|truncated) gzip"):
        list(SourceFile(path).blocks(1000))
    path.write_bytes(b'["a","b"]\n')
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: damaged gzip"):
        list(SourceFile(path).blocks())


@pytest.mark.parametrize("name, kind, lines", [
    ("train/turkcorpus.jsonl.gz", "set", 2359),
    ("train/snli_dev_triplets.jsonl.gz", "triplet", 2967),
    ("train/nq_open_dev.jsonl.gz", "lists", 3610),
    ("train/stackexchange_linked_titles.jsonl.gz", "pair", 1173),
])
def test_real_files(shared_data, name, kind, lines):
    """No line of the real files is bad, and the texts are those that a plain JSON reader finds."""
    examples = [example for _, example in read_examples(shared_data / name)]
    assert len(examples) == lines and {example.file_kind for example in examples} == {kind}
    with gzip.open(shared_data / name, "rt") as file:
        values = [json.loads(line) for line in file]
    for example, value in zip(examples, values):
        if isinstance(value, dict):
            value = value.get("set") or [value["query"], *value["pos"]]
        assert set(example.texts) == {text.strip() for text in value}
