import pytest

from evaluation.files.lines import check_text, json_objects, table_rows


@pytest.mark.parametrize("line, message", [
    ("{", "not JSON: Expecting"), ("[" * 100_000, "not JSON: maximum recursion"),
    (f'{{"a": {"1" * 5000}}}', r"not JSON: Exceeds the limit \(4300 digits\)"),
    ("null", "not a JSON object: 'null'"), ('["a"]', "not a JSON object: "),
])
def test_a_line_that_is_no_object_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\r\n' + line + "\n")
    objects = json_objects(path)
    assert next(objects) == (f"{path}:1", {"a": 1})
    with pytest.raises(ValueError, match=f"a.jsonl:2: {message}"):
        next(objects)


def test_table_rows_of_a_file_from_windows(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbfx\ty\r\n1\t2\r\n3\r\n")
    rows = table_rows(path, ("y",))
    assert next(rows) == (f"{path}:2", {"x": "1", "y": "2"})
    with pytest.raises(ValueError, match=r"a.tsv:3: 1 tab-separated columns, but the header has 2"):
        next(rows)
    with pytest.raises(ValueError, match=r"a.tsv:1: the header lacks z; it has x, y"):
        next(table_rows(path, ("x", "z")))


@pytest.mark.parametrize("text, message", [
    (3, "it is not a string: 3"), (None, "it is not a string: null"), (" \t", "it is empty"),
    ("a\ud800", "it has half a surrogate pair"),
])
def test_check_text(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_text(text, "it")
    check_text("", "it", may_be_empty=True)
