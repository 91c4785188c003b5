"""Every layout that the evaluation commands read gives its texts, and not its ids, labels and scores."""

import gzip
import json

import pytest

from data.mine.filter.evaluation_files import find_files, texts_of
from tests.data.mine.filter.toys import write


def lines(*values) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


LAYOUTS = {
    "sts.tsv": (b"\xef\xbb\xbfsentence1\tsentence2\tscore\tsplit\tsource\nOne.\tTwo\t3\ttest\tnews of 2012\n",
                [(2, "test", "One."), (2, "test", "Two")]),
    "banking.tsv": (b"text\tlabel\tsplit\nwhere\tcard_arrival now\tdev\nskip me\tx y\tTRAIN\n", [(2, "dev", "where")]),
    "SICK.txt": (b"pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\tA b\tc\t4.5\n",
                 [(2, "", "A b"), (2, "", "c")]),
    "STS.input.MSRpar.txt": (b"First one.\tSecond one.\nThird one.\tFourth one.\n", [
        (1, "", "First one."), (1, "", "Second one."), (2, "", "Third one."), (2, "", "Fourth one.")]),
    "stsb-en-test.csv": (b'"A ""b"", c",d e f,3.2\n', [(1, "", 'A "b", c'), (1, "", "d e f")]),
    "stsb-en-train.csv": (b"a b,c d,3.2\n", []),
    "askubuntu/text_tokenized.txt": (b"123\thow to boot\tmy disk is gone\n", [
        (1, "", "how to boot"), (1, "", "my disk is gone")]),
    "askubuntu/test.txt": (b"123\t45 67\t89 10 11\t0.5 0.2\n", []),
    "beir/corpus.jsonl": (lines({"_id": "doc 1", "title": "Sky", "text": "It is blue", "metadata": {"url": "a b"}},
                                {"_id": "d2", "title": "", "text": "Bare"}),
                          [(1, "", "Sky It is blue"), (1, "", "It is blue"), (2, "", "Bare")]),
    "beir/qrels/test.tsv": (b"query-id\tcorpus-id\tscore\nq1\td1\t1\n", []),
    "scidocs/cite.jsonl.gz": (gzip.compress(lines({"query": "q", "positive": ["p", "r"], "negative": ["n"]})),
                              [(1, "", "q"), (1, "", "p"), (1, "", "r"), (1, "", "n")]),
    "ntrex.jsonl": (lines({"id": "x 1", "eng": "good day", "deu": "guten Tag", "count": 3}),
                    [(1, "", "good day"), (1, "", "guten Tag")]),
    "heldout.jsonl": (lines(["a", "b"], {"set": ["c", "d", "c"]}, {"texts": ["e"], "split": "train"}),
                      [(1, "", "a"), (1, "", "b"), (2, "", "c"), (2, "", "d")]),
    "translations.tsv": (b"en\tde\ngood day\tguten Tag\n", [(2, "", "good day"), (2, "", "guten Tag")]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    content, expected = LAYOUTS[name]
    write(tmp_path, {name: content})
    assert [tuple(found) for found in texts_of(tmp_path / name, name, ("train",))] == expected


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.table({
        "sentence1": ["a", "b"], "answers": [{"text": ["c d"], "start": [1]}, None], "label": [1, 0],
        "split": ["test", "train"]}), tmp_path / "x.parquet")
    assert [tuple(found) for found in texts_of(tmp_path / "x.parquet", "x.parquet", ("train",))] == [
        (1, "test", "a"), (1, "test", "c d")]


def test_all_splits_count_if_none_is_skipped(tmp_path):
    write(tmp_path, {"e.tsv": LAYOUTS["banking.tsv"][0]})
    assert [found.text for found in texts_of(tmp_path / "e.tsv", "e.tsv", ())] == ["where", "skip me"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
    ("a.tsv", b"a b\tc\n\xff\xfe\xfd\n", r"a\.tsv:2: not UTF-8"),
    ("a.txt", "ab cd".encode("utf-16"), r"a\.txt: the file is UTF-16"),
    ("a.csv", b'a b,"c\n', r"a\.csv:1: not valid CSV"),
    ("a.tsv.gz", gzip.compress(b"a b\tc d\n" * 99)[:-9], r"a\.tsv\.gz: truncated gzip"),
    ("a.parquet", b"PAR1 no", r"a\.parquet: damaged Parquet"),
])
def test_damaged_files(tmp_path, name, content, message):
    write(tmp_path, {name: content})
    with pytest.raises(ValueError, match=message):
        list(texts_of(tmp_path / name, name, ()))


def test_files_that_are_found(tmp_path):
    write(tmp_path, {"b/a.tsv": b"x y\n", "README.txt": b"x y\n", "notes.md": b"x", ".hidden/a.tsv": b"x",
                     "z.txt": b"x"})
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found, left_out = find_files([str(tmp_path), str(tmp_path / "b/a.tsv")])
    assert [name for _, name in found] == ["b/a.tsv", "z.txt"]
    assert left_out.endswith("README.txt, notes.md")
