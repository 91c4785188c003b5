"""Tables as training files: CSV, Parquet and --columns, on files written by hand and real ones."""

import csv
import io
import json
import lzma
import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.tables
from data.columns import Columns, as_json, parse_columns
from data.examples import BadLine, RawExample
from data.formats import csv_records
from data.source_file import SourceFile
from tests.texts import read_examples


def columns(text: str) -> Columns:
    return parse_columns(text, "--columns")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(path, given="", **options):
    """{number: texts, or the reason why there are none}."""
    return {number: str(each) if isinstance(each, BadLine) else each.texts
            for number, each in read_examples(path, columns=columns(given), **options)}


def test_columns_of_strings_and_objects():
    assert columns("query=a, positive = b ,negative=c,negative=d,score=e") == Columns("a", ("b",), ("c", "d"), "e")
    given = {"query": "a,b", "positive": ["p", "q=r"], "score": "s"}
    assert parse_columns(given, "x") == Columns("a,b", ("p", "q=r"), (), "s")
    for each in (Columns("a", ("b",)), Columns("a", ("b", "c"), ("d",), "e")):
        assert parse_columns(as_json(each), "x") == each
    assert parse_columns((), "x") is parse_columns("", "x") is parse_columns(as_json(None), "x") is None


@pytest.mark.parametrize("given, reason", [
    ("query=a", "no column for positive"), ("positive=a", "no column for query"),
    ("question", "'question' is not ROLE="),
    ("query=a,answer=b", "'answer=b' is not ROLE=COLUMN; the roles are query, positive, negative, score"),
    ("query=a,query=b,positive=c", "names 2 columns for query"), ("query=,positive=b", "'query=' is not"),
    ({"query": 3, "positive": "b"}, "'query=3' is not"), ({"query": ["a"], "positive": []}, "no column for positive"),
    ("query=a,positive=b,score=c,score=d", "names 2 columns for score"),
])
def test_bad_columns(given, reason):
    with pytest.raises(ValueError, match=f"^--columns.*{reason}"):
        parse_columns(given, "--columns")


def test_objects_with_other_keys(tmp_path):
    lines = [
        {"question": " q ", "answer": "a", "id": 7}, ["x", "y"], {"texts": ["b", "c"]},
        {"question": "q", "answers": "a"}, {"question": None, "answer": "a"}, {"question": ["q"], "answer": "a"},
        {"question": "q", "answer": ["a", "b"]}, {"question": "q", "answer": []}, {"question": "q", "answer": ["a", 3]},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    examples = [each for _, each in read_examples(path, columns=columns("query=question,positive=answer"))]
    assert examples[0] == RawExample("pair", ("q", "a"), 1, None, ("id",))
    assert [each.texts for each in examples[1:3]] == [("x", "y"), ("b", "c")]
    assert examples[6] == RawExample("lists", ("q", "a", "b"), 2)
    assert [str(examples[i]) for i in (3, 4, 5, 7, 8)] == [
        'there is no column "answer"', 'column "question": null',
        'column "question" holds a list: the query is one text', 'column "answer" has no text',
        'column "answer": a text is not a string',
    ]


@pytest.mark.parametrize("value, given, expected", [
    ({"a": "q", "b": "p", "c": "n"}, "query=a,positive=b,negative=c", RawExample("triplet", ("q", "p", "n"), 1)),
    ({"a": "q", "b": "p", "c": ["n"]}, "query=a,positive=b,negative=c", RawExample("lists", ("q", "p", "n"), 1)),
    ({"a": "q", "b": "p", "c": "n", "d": "m"}, "query=a,positive=b,negative=c,negative=d",
     RawExample("lists", ("q", "p", "n", "m"), 1)),
    ({"a": "q", "b": {"t": ["p", "o"]}}, "query=a,positive=b.t", RawExample("lists", ("q", "p", "o"), 2)),
    ({"a": "q", "b": [{"t": "p"}, {"t": "o"}]}, "query=a,positive=b.t", RawExample("lists", ("q", "p", "o"), 2)),
    ({"a": "q", "b.t": "p", "b": {"t": "x"}}, "query=a,positive=b.t", RawExample("pair", ("q", "p"), 1)),
    ({"a": "q", "b": "p", "s": 0.5}, "query=a,positive=b,score=s", RawExample("lists", ("q", "p"), 1, (0.5,))),
    ({"a": "q", "b": ["p", "o"], "c": ["n"], "s": [1, 2, 3]}, "query=a,positive=b,negative=c,score=s",
     RawExample("lists", ("q", "p", "o", "n"), 2, (1.0, 2.0, 3.0))),
])
def test_kinds_of_columns(tmp_path, value, given, expected):
    [(_, example)] = read_examples(write(tmp_path / "a.jsonl", json.dumps(value)), columns=columns(given))
    assert example._replace(ignored_keys=()) == expected


@pytest.mark.parametrize("score", ["x", True, None, [1, 2, 3, 4], 10**400, 1e300, float("inf"), {}])
def test_bad_scores(tmp_path, score):
    path = write(tmp_path / "a.jsonl", json.dumps({"a": "q", "b": "p", "c": "n", "s": score}))
    [(_, reason)] = read_examples(path, columns=columns("query=a,positive=b,negative=c,score=s"))
    assert isinstance(reason, BadLine) and 'column "s"' in str(reason)
    path = write(tmp_path / "b.jsonl", json.dumps({"query": "q", "pos": ["p"], "pos_scores": [score]}))
    [(_, reason)] = read_examples(path)
    assert isinstance(reason, BadLine) and "pos_scores" in str(reason)


def test_a_score_of_the_positive_leaves_the_negatives_without(tmp_path):
    path = write(tmp_path / "a.csv", "a,b,c,s\nq,p,n,0.25\n")
    [(_, example)] = read_examples(path, columns=columns("query=a,positive=b,negative=c,score=s"))
    np.testing.assert_array_equal(example.scores, [0.25, np.nan])


CSV = 'one,"two, and\nmore"\n\n"a ""quoted"" word","x\r\ny"\r\nthree,four,five\n"five",six\nlast,"line"'


def test_csv_with_quotes_and_line_feeds(tmp_path):
    expected = {1: ("one", "two, and\nmore"), 4: ('a "quoted" word', "x\r\ny"), 6: ("three", "four", "five"),
                7: ("five", "six"), 8: ("last", "line")}
    assert found(write(tmp_path / "a.csv", CSV)) == expected
    header = {number + 2: texts for number, texts in expected.items()}
    assert found(write(tmp_path / "b.csv", '\ufeff"first\ncolumn",second\n' + CSV), tsv_header=True) == header
    source = SourceFile(tmp_path / "b.csv", tsv_header=True)
    assert next(source.blocks())[0] == 3 and source.columns == ["first\ncolumn", "second"]


@pytest.mark.parametrize("seed", range(20))
def test_csv_equals_the_library_at_any_block_size(tmp_path, seed):
    generator = random.Random(seed)
    rows = [["".join(generator.choice('ab",\n\r é') for _ in range(generator.randrange(12))) + "x" for _ in "ab"]
            for _ in range(60)]
    text = io.StringIO()
    csv.writer(text, lineterminator=generator.choice(["\n", "\r\n"])).writerows(rows)
    path = write(tmp_path / "a.csv", text.getvalue())
    expected = [tuple(cell.strip() for cell in row) for row in rows]
    assert list(found(path).values()) == expected
    for size in (1, 7, 64):
        source = SourceFile(path)
        blocks = list(source.blocks(size))
        assert b"".join(block for _, block in blocks) == path.read_bytes()
        assert [cells for _, block in blocks for _, cells in csv_records(io.BytesIO(block))] == rows


def test_bad_csv_lines_lose_only_themselves(tmp_path, monkeypatch):
    text = 'a,b\n"open,c\nd,e\n"x"y,z\nf,g\n\xff'.encode() + b'\xff,h\ni,j\nk\n'
    reason = "not valid CSV: a quote is not closed, or not doubled"
    expected = {1: ("a", "b"), 2: reason, 3: ("d", "e"), 4: reason, 5: ("f", "g"), 6: "not valid UTF-8",
                7: ("i", "j"), 8: "a CSV record must have 2 or 3 texts: keep only the columns of texts, or name them "
                "with --columns"}
    path = write(tmp_path / "a.csv", text)
    assert found(path) == expected
    monkeypatch.setattr("data.formats.LONGEST_LINE", 20)  # the quote of line 2 could close, but too far away
    assert found(write(path, 'a,b\n"open,c\n' + "d,e\n" * 9 + 'f,"g"\n')) == {
        1: ("a", "b"), 2: reason, **dict.fromkeys(range(3, 12), ("d", "e")), 12: ("f", "g")}


def test_columns_of_csv_and_tsv(tmp_path):
    path = write(tmp_path / "a.csv", "id,question,answer\n1,q,a\n2,r\n")
    expected = {2: ("q", "a"), 3: "a CSV record has 2 columns, the header has 3"}
    assert found(path, "query=question,positive=answer") == expected
    assert found(path, "query=2,positive=3", tsv_header=True) == {2: ("q", "a"), 3: 'there is no column "3"'}
    assert found(path, "query=2,positive=3")[1] == ("question", "answer")
    path = write(tmp_path / "b.tsv.xz", lzma.compress(b"\xef\xbb\xbfanswer\tx\tquestion\r\na\ty\tq\r\n"))
    assert found(path, "query=question,positive=answer") == {2: ("q", "a")}
    with pytest.raises(ValueError, match=r'b\.tsv\.xz: its first line has no column "title": answer, x, question'):
        found(path, "query=title,positive=answer")
    with pytest.raises(ValueError, match=r'c\.csv: its first line has 2 columns "a": a, a'):
        found(write(tmp_path / "c.csv", "a,a\nx,y\n"), "query=a,positive=a")


QUESTIONS, ANSWERS = ["one", "two", "three"], ["eins", "zwei", "drei"]


def parquet(path, table, **options):
    pq.write_table(pa.table(table), path, **options)
    return path


@pytest.mark.parametrize("kind", [
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string())], ids=str)
def test_parquet_of_every_string_type(tmp_path, kind):
    table = {"q": pa.array(QUESTIONS).cast(kind), "id": [1, 2, 3], "a": pa.array(ANSWERS).cast(kind),
             "__index_level_0__": [5, 6, 7]}
    path = parquet(tmp_path / "A.PARQUET", table)
    assert found(path, "query=q,positive=a") == dict(enumerate(zip(QUESTIONS, ANSWERS), start=1))
    source = SourceFile(path, columns=columns("query=q,positive=a"))
    assert len(list(source.blocks())) == 1 and source.columns == ["q", "id", "a"]
    assert source.bytes_read == path.stat().st_size


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)],
                         ids=str)
def test_parquet_of_lists(tmp_path, kind):
    lists = pa.array([["a", "b"], ["c", "d"], ["e", "f"]]).cast(kind)
    struct = pa.StructArray.from_arrays([pa.array(ANSWERS), lists], ["text", "others"])
    path = parquet(tmp_path / "a.parquet", {"q": QUESTIONS, "lists": lists, "in": struct, "s": [[1.0, 2.0]] * 3})
    assert found(path, "query=q,positive=lists")[1] == ("one", "a", "b")
    assert found(path, "query=q,positive=in.text,negative=in.others")[3] == ("three", "drei", "e", "f")
    [first, *_] = read_examples(path, columns=columns("query=q,positive=lists,score=s"))
    assert first == (1, RawExample("lists", ("one", "a", "b"), 2, (1.0, 2.0)))


def test_parquet_of_lists_of_structs(tmp_path):
    passages = [[{"id": 1, "text": "a"}, {"id": 2, "text": "b"}], [{"id": 3, "text": "c"}], []]
    inside = [{"deep": each, "other": 1} for each in passages]
    path = parquet(tmp_path / "a.parquet", {"q": QUESTIONS, "pos": passages, "in": inside})
    expected = {1: ("one", "a", "b"), 2: ("two", "c"), 3: 'column "pos.text" has no text'}
    assert found(path, "query=q,positive=pos.text") == expected
    assert found(path, "query=q,positive=in.deep.text")[1] == ("one", "a", "b")
    with pytest.raises(ValueError, match=r'"pos" has the type list<.*: name one of pos\.id, pos\.text'):
        found(path, "query=q,positive=pos")
    with pytest.raises(ValueError, match=r'"pos\.id" has the type list<item: int64>'):
        found(path, "query=q,positive=pos.id")
    with pytest.raises(ValueError, match=r'there is no column "pos\.title": it has q, pos, in'):
        found(path, "query=q,positive=pos.title")


def test_parquet_of_a_training_format(tmp_path):
    table = {"query": ["q", "r", None], "pos": [["a"], ["b", "c"], ["d"]], "neg": [["n"], None, ["o"]], "id": [1, 2, 3]}
    assert found(parquet(tmp_path / "a.parquet", table)) == {1: ("q", "a", "n"), 2: ("r", "b", "c"),
                                                             3: "a text is not a string"}
    path = parquet(tmp_path / "b.parquet", {"set": [["a", "b"], ["c", None]]})
    assert found(path) == {1: ("a", "b"), 2: "a text is not a string"}
    with pytest.raises(ValueError, match=r"c\.parquet: its columns are anchor \(string\), n \(int64\): name.*--col"):
        found(parquet(tmp_path / "c.parquet", {"anchor": ["a"], "n": [1]}))


@pytest.mark.parametrize("name, value, reason", [
    ("a", pa.array([1, 2]), '"a" has the type int64, and a text or a list of texts is needed'),
    ("a", pa.array([b"x", b"y"]), '"a" has the type binary'), ("a", pa.nulls(2), '"a" has the type null'),
    ("a", pa.array([[1], [2]]), '"a" has the type list<element: int64>'),
    ("a", pa.array([[["x"]], [["y"]]]), '"a" has the type list<element: list'),
    ("a", pa.array([{"x": "y"}] * 2), r'"a" has the type struct<x: string>.*: name one of a\.x'),
    ("q", pa.array([["x"], ["y"]]), '"q" has the type list<element: string>, and a text is needed'),
    ("s", pa.array(["x", "y"]), '"s" has the type string, and a number or a list of numbers is needed'),
    ("b", pa.array([1, 2]), r'there is no column "a": it has q, s, b'),
])
def test_parquet_of_other_types_is_refused(tmp_path, name, value, reason):
    table = {"q": QUESTIONS[:2], "a": ANSWERS[:2], "s": [1.0, 2.0]}
    if name == "b":
        del table["a"]
    path = parquet(tmp_path / "a.parquet", table | {name: value})
    with pytest.raises(ValueError, match=rf"a\.parquet: (column )?{reason}"):
        found(path, "query=q,positive=a,score=s")


def test_parquet_nulls_and_bytes_that_are_no_text(tmp_path):
    broken = pa.array([b"x", b"\xff", None, b""]).cast(pa.binary()).view(pa.string())
    path = parquet(tmp_path / "a.parquet", {"q": ["a", "b", "c", "d"], "p": broken})
    assert found(path, "query=q,positive=p") == {1: ("a", "x"), 2: "not valid UTF-8", 3: 'column "p": null',
                                                 4: 'column "p": empty text'}


def test_parquet_in_blocks_of_any_size(tmp_path):
    texts = [f"{i} " + "x" * (i % 500) for i in range(3000)]
    path = parquet(tmp_path / "a.parquet", {"q": texts, "p": texts[::-1]}, row_group_size=700)
    expected = list(zip(texts, texts[::-1]))
    for size in (1000, 10_000, 1 << 20):
        source = SourceFile(path, columns=columns("query=q,positive=p"))
        blocks = list(source.blocks(size))
        assert max(len(block) for _, block in blocks) < 4 * size + 4096
        rows = [row for _, block in blocks for row in data.tables.rows_of_block(block)]
        assert [(row["q"], row["p"]) for row in rows] == expected
        firsts = [first for first, _ in blocks]
        assert [rows[first - 1]["q"] for first in firsts] == [texts[first - 1] for first in firsts]


def test_parquet_that_stores_a_long_text_once_is_cut_into_blocks(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"q": ["x" * 100_000] * 200, "p": ["y"] * 200})
    blocks = list(SourceFile(path, columns=columns("query=q,positive=p")).blocks(1 << 20))
    assert max(len(block) for _, block in blocks) < 65 * 100_000
    assert [len(list(data.tables.rows_of_block(block))) for _, block in blocks] == [64, 64, 64, 8]


def test_parquet_with_other_dictionaries_in_each_row_group(tmp_path):
    texts = [f"text {number // 7}" for number in range(1000)]
    table = pa.table({"q": pa.array(texts).dictionary_encode(), "p": texts})
    path = parquet(tmp_path / "a.parquet", table, row_group_size=90)
    assert list(found(path, "query=q,positive=p").values()) == [(each, each) for each in texts]


def test_damaged_and_empty_parquet_is_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"q": QUESTIONS * 1000, "p": ANSWERS * 1000})
    whole = path.read_bytes()
    for content in (whole[:100], whole[:-3], b"", b'["a", "b"]\n'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: damaged Parquet file"):
            found(path, "query=q,positive=p")
    parquet(path, {"q": pa.array([], pa.string()), "p": pa.array([], pa.string())})
    with pytest.raises(ValueError, match=r"a\.parquet: the file has no rows"):
        found(path, "query=q,positive=p")


@pytest.mark.parametrize("name, module", [("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, module):
    write(tmp_path / name, b"x" * 100)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.parquet", None)
    with pytest.raises(ValueError, match=rf"{name}: .* need {module}: pip install -e '\.\[parquet\]'"):
        found(tmp_path / name)


def test_real_tables(shared_data):
    raw = shared_data / "raw"
    pubmed = found(raw / "hub/pubmedqa/train.parquet", "query=question,positive=context.contexts")
    table = pq.read_table(raw / "hub/pubmedqa/train.parquet").to_pylist()
    assert len(pubmed) == 800 and not [each for each in pubmed.values() if isinstance(each, str)]
    assert pubmed[800] == (table[799]["question"].strip(), *map(str.strip, table[799]["context"]["contexts"]))
    yahoo = raw / "layouts/yahoo_answers_topics/yahoo_answers_topics_1.0.0/yahoo_answers_csv/train.csv"
    with open(yahoo, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    texts = found(yahoo, "query=2,positive=4")
    assert [each for each in texts.values() if not isinstance(each, str)] == [
        (row[1].strip(), row[3].strip()) for row in rows if row[1].strip() and row[3].strip()]
    answers = raw / "layouts/so_stacksample/Answers_1.1.0/Answers.csv"
    with open(answers, newline="", encoding="utf-8") as file:
        bodies = [row["Body"].strip() for row in csv.DictReader(file)]
    assert [texts[1] for texts in found(answers, "query=Id,positive=Body").values()] == bodies
