"""Long JSON read one element at a time: equal to what json reads, wherever the chunks end; cuts and errors are told."""

import gzip
import io
import json
import random

import pytest

from data.mine.published import json_stream
from data.mine.published.json_stream import JsonCut, JsonError, NoSuchKey, elements, members, values
from data.mine.reading import as_file

VALUE = {"before": [{"a": "]}\"\\"}, [[]], -1.5e3, None], "data": [
    {"text": "caf\u00e9 \U0001f600 \\ \" ]}", "n": [1, 2.5, {"x": {}}]}, "two", 12345678901234567890, True, [], ""],
    "after": {"data": [1]}}


def file_of(text):
    return io.BufferedReader(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", request.param)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii", [True, False])
def test_elements_and_members(chunk, indent, ascii):
    text = json.dumps(VALUE, indent=indent, ensure_ascii=ascii)
    assert [value for _, value in elements(file_of(text), "data")] == VALUE["data"]
    assert list(members(file_of(text))) == list(VALUE.items())
    assert list(elements(file_of(text), "after", "data")) == [("after.data[0]", 1)]
    assert list(members(file_of(text), "after")) == [("data", [1])]
    assert [value for _, value in elements(file_of(json.dumps(VALUE["data"], indent=indent)))] == VALUE["data"]


def test_values_one_after_the_other(chunk):
    text = "\n\n".join(json.dumps(value, indent=1) for value in [VALUE, 12, [3], 45]) + "\n"
    assert list(values(file_of(text))) == [("value 1", VALUE), ("value 2", 12), ("value 3", [3]), ("value 4", 45)]
    assert [value for _, value in values(file_of('{"a":1}{"b":2}'))] == [{"a": 1}, {"b": 2}]


def test_every_cut_yields_what_is_whole_and_is_told(chunk):
    text = json.dumps(VALUE, indent=1)
    for end in range(1, len(text)):
        found = []
        with pytest.raises(JsonCut):
            for _, value in elements(file_of(text[:end]), "data"):
                found.append(value)
        assert found == VALUE["data"][:len(found)]
        start = text.index('"two"')
        whole = sum(text.index(mark, start) + len(mark) < end for mark in ('"two"', "7890", "true", "[]", '""'))
        assert len(found) >= whole


def test_an_end_of_the_bytes_below_loses_no_element():
    """A truncated gzip file: elements that were unpacked come before the error."""
    noise = random.Random(0)
    items = [f"{noise.getrandbits(60):x}" for _ in range(30_000)]
    packed = gzip.compress(json.dumps(items).encode())
    unpacked, found = gzip.GzipFile(fileobj=io.BytesIO(packed[:len(packed) // 2])), []
    with pytest.raises(EOFError):
        for _, value in elements(as_file(iter(lambda: unpacked.read1(1000), b""))):
            found.append(value)
    assert 13_000 < len(found) < 17_000 and found == items[:len(found)]


@pytest.mark.parametrize("text, error, message", [
    ("", NoSuchKey, "the file is empty"),
    ("[1]", NoSuchKey, "the JSON value is not an object"),
    ('{"data": {}}', NoSuchKey, "data is not an array"),
    ('{"x": [1, {"data": []}]}', NoSuchKey, "it has no key 'data'"),
    ('{"data": [1 2]}', JsonError, "',' is expected at character 13, not '2'"),
    ('{"data": [1, tru]}', JsonError, "Expecting value at character 14"),
    ('{"data": [{"a" 2}]}', JsonError, "Expecting ':' delimiter at character 16"),
    ('{"data": [1]} x', JsonError, "more text follows the value, at character 15"),
    ('{data: [1]}', JsonError, "a key is expected at character 2"),
    ('{"data": [' + "9" * 5000 + "]}", JsonError, "cannot be decoded begins at character 11"),
    ('{"data": [' + "[" * 200_000, JsonError, "cannot be decoded begins at character 11"),
])
def test_errors(text, error, message, chunk):
    with pytest.raises(error, match=message):
        list(elements(file_of(text), "data"))


def test_a_value_without_end_is_read_to_a_bound_only(monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    file = file_of('{"data": ["' + "x" * 100_000 + '"]}')
    with pytest.raises(JsonError, match="no value of at most 1000 characters begins at character 11"):
        list(elements(file, "data"))
    assert file.tell() < 10_000


def test_long_values_that_are_passed_over_are_not_kept(monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    text = json.dumps({"images": [{"id": number, "name": "x]"} for number in range(5000)], "data": [1]})
    assert list(elements(file_of(text), "data")) == [("data[0]", 1)]


def test_bytes_that_are_not_utf8_stay_in_their_text(chunk):
    assert [value for _, value in elements(file_of(b'["a\xff", "b\xc3\xa9"]'))] == ["a\udcff", "b\u00e9"]
