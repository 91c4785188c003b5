"""Files that are not what they seem are refused after their first block; honest files are taken."""

import json
import re

import pytest

from data import first_block
from data.first_block import check_first_block
from data.source_file import SourceFile


def check(tmp_path, name, lines, tsv="texts", tsv_header=False, max_bad_share=0.01):
    path = tmp_path / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    check_first_block(SourceFile(path, tsv_header, tsv), max_bad_share)


SENTENCES = [f"This is sentence number {i} of them.\tHere is its twin, the {i}th." for i in range(200)]


@pytest.mark.parametrize("lines, column", [
    ([f"{row}\t{i % 7 / 1.5:.3f}" for i, row in enumerate(SENTENCES)], 3),
    ([f"{row}\t{i % 5}" for i, row in enumerate(SENTENCES)], 3),
    ([f"{row}\t{i % 5},25" for i, row in enumerate(SENTENCES)], 3),
    ([f"{i}\t{row}" for i, row in enumerate(SENTENCES)], 1),
    ([f"{i}\t{row.split(chr(9))[0]}" for i, row in enumerate(SENTENCES)], 1),
    ([f"{row}\t{('entailment', 'neutral')[i % 2]}" for i, row in enumerate(SENTENCES)], 3),
    ([f"{row.split(chr(9))[0]}\t{i % 2}" for i, row in enumerate(SENTENCES)], 2),
    (["a man eats\ta man is eating\t4.5"], 3),
])
def test_columns_of_values(tmp_path, lines, column):
    with pytest.raises(ValueError, match=f"a.tsv: column {column} holds numbers or labels.*keep only"):
        check(tmp_path, "a.tsv", lines)
    if len(lines[0].split("\t")) == 3:
        with pytest.raises(ValueError, match=f"column {column} holds"):
            check(tmp_path, "a.jsonl", [line.split("\t") for line in lines])


@pytest.mark.parametrize("header", [
    "sentence1\tsentence2", "Sentence1\tSentence2\tscore", "query\tpositive", "anchor\ttext", "text_a\ttext_b",
    "question\tanswer\tnegative", "src\ttgt_de", "query\tpositive\thard_negative", "premise\thypothesis",
])
def test_headers(tmp_path, header):
    rows = [f"{row}\tAnd its foe {i}." if header.count("\t") == 2 else row for i, row in enumerate(SENTENCES)]
    with pytest.raises(ValueError, match=r"looks like column names .*--tsv_header"):
        check(tmp_path, "a.tsv", [header, *rows])
    check(tmp_path, "a.tsv", [header, *rows], tsv_header=True)
    with pytest.raises(ValueError, match=r"looks like column names .*delete it"):
        check(tmp_path, "a.jsonl", [line.split("\t") for line in (header, *rows)])


def test_headers_of_parallel_files(tmp_path):
    with pytest.raises(ValueError, match=r"looks like column names .*--tsv_header"):
        check(tmp_path, "a.tsv", ["en\tde", *SENTENCES], tsv="parallel")


@pytest.mark.parametrize("lines", [
    SENTENCES,
    [*SENTENCES[:50], "What is two and two?\t4", "7\tseven"],
    [f"What is {i} and {i}?\t{2 * i}" for i in range(200)],  # answers may be numbers
    ["the\tdie", "so\tja", "cat\tKatze", "answer\tAntwort"],  # a dictionary
    ["Hello\tBonjour", *SENTENCES],
    [f"{row}\tThe number {i}" for i, row in enumerate(SENTENCES)] + ["a b\tc d\t42"],
])
def test_honest_files(tmp_path, lines):
    check(tmp_path, "a.tsv", lines)


@pytest.mark.parametrize("value, keys", [
    ({"anchor": "a", "positive": "b"}, '"anchor", "positive"'),
    ({"sentence1": "a", "sentence2": "b", "score": 1}, '"sentence1", "sentence2", "score"'),
    ({"question": "a", "answer": "b"}, '"question", "answer"'), ({}, "no keys"),
])
def test_other_keys_are_named_once(tmp_path, value, keys):
    with pytest.raises(ValueError, match=r"no example in 5,000 lines.*5,000 such lines.*") as error:
        check(tmp_path, "a.jsonl", [value] * 5000)
    assert str(error.value).count(f"not {keys}") == 1 and re.search("name its keys", str(error.value))


def test_mostly_bad_lines(tmp_path):
    lines = [["a", "b"]] + [{"anchor": "a", "positive": "b"}] * 99
    with pytest.raises(ValueError, match=r"99 of the first 100 lines are bad: .*:2: an object must"):
        check(tmp_path, "a.jsonl", lines)
    check(tmp_path, "a.jsonl", lines, max_bad_share=0.99)


@pytest.mark.parametrize("rows, parallel, is_header", [
    ([["title", "Katze"], *[["cat", "Hund"]] * 30], False, False),  # a dictionary of single words
    ([["title", "Is this the heading of it?"], *[["A cat sleeps.", "A dog is awake."]] * 30], False, False),
    ([["title", "Katze"], *[["A cat sleeps.", "Eine Katze."]] * 30], False, True),
    ([["one", "two"], *[["three", "four"]] * 30], True, False),
    ([["no", "so"], *[["A cat sleeps.", "A dog is awake."]] * 30], False, False),  # texts, not languages
    ([["en", "de"], *[["A cat sleeps.", "Eine Katze."]] * 30], True, True),
])
def test_what_a_header_is(rows, parallel, is_header):
    assert first_block._is_header(rows, parallel) is is_header
