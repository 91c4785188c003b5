"""Training files: one example per line or row, read in blocks (data/source_file.py) and parsed one by one.

    .jsonl    ["a", "b"]                                     a pair: query and positive
              ["anchor", "positive", "negative"]             a triplet
              {"texts": ["a", "b"]} or {"texts": ["a", "b", "c"]}    the same as the two lists above
              {"set": ["a", "b", ...]}                       any two are a positive pair
              {"query": "a", "pos": ["b", ...]}              the query with one positive, drawn at load time
              {"query": "a", "pos": [...], "neg": [...]}     with one positive and one negative, drawn at load time;
                                                             optional "pos_scores" and "neg_scores": [number, ...]
              any other object, with --columns (data/columns.py)
    .tsv      a<TAB>b or anchor<TAB>positive<TAB>negative; a header line only with --tsv_header or --columns.
              With --tsv=parallel: a<TAB>its translation<TAB>another .., any number of columns, empty if there is
              no translation: column 0 is the query, with one translation as its positive, drawn at load time
    .csv      the same with commas: quoted fields may hold commas, line feeds and doubled quotes (RFC 4180)
    .txt      one text per line: query and positive are the same text, and differ only by dropout
    .parquet  a table that has the keys of one of the objects above as columns, or any other with --columns

All but .parquet may be compressed: .gz, .bz2, .xz and .zst. Suffixes may be in upper case.

A text is stripped of white space at both ends. A file holds examples of one kind, that of its first good line: pairs,
triplets, sets, query lists, or query lists with negatives. Any other line is bad, and so is a line that is not UTF-8,
not JSON, of another shape, longer than 16 MiB, or has an empty text. Blank lines are skipped. Other keys of an object
and other columns of a table are ignored.
"""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.columns import Columns, example_by_columns, has_columns, score_of
from data.compression import NAMES, compression_of
from data.examples import LONGEST_LINE, TOO_LONG, BadLine, BlankLine, RawExample, clean_text, printable

SUFFIXES = {".jsonl": "json", ".tsv": "tsv", ".csv": "csv", ".txt": "text"}  # each may be compressed
OVERLONG = b"\xff too long"  # stands for a line that was not kept; it is no UTF-8
FORMS = ({"texts"}, {"set"}, {"query", "pos"})  # keys of the objects that are examples
QUERY_KEYS = {"query", "pos", "neg", "pos_scores", "neg_scores"}
_BARE_RETURN = "\udc0d"  # stands for a carriage return within a line: pandas does not quote it, and csv refuses it


class Layout(NamedTuple):
    """How the lines or rows of a file are read."""

    syntax: str  # "json", "tsv", "parallel", "csv", "text" or "parquet"
    columns: Columns | None = None
    header: tuple[str, ...] = ()  # names of a table's columns; none: they are numbers, from 1


def syntax_of(path: str | Path) -> str | None:
    """"json", "tsv", "csv", "text" or "parquet" by the file's name; None if it is no training file."""
    name = os.fspath(path).lower()
    if name.endswith(".parquet"):
        return "parquet"
    name = name.removesuffix(compression_of(name))
    return next((syntax for suffix, syntax in SUFFIXES.items() if name.endswith(suffix)), None)


def known_suffixes() -> str:
    """The names of training files, in words."""
    return f"{', '.join(SUFFIXES)} (each may be compressed: {', '.join(NAMES)}) or .parquet"


def parse_records(first: int, content: bytes, layout: Layout) -> Iterator[tuple[int, RawExample | BadLine]]:
    """(number, example or the reason why there is none) of each line or row of a block; blank lines are left out.

    A number is that of the line, or of the first line of a CSV record, or of the row of a Parquet file.
    """
    if layout.syntax == "parquet":
        from data.tables import rows_of_block  # pyarrow is an extra

        for number, row in enumerate(rows_of_block(content), start=first):
            yield number, row if isinstance(row, BadLine) else _or_reason(_from_row, row, layout)
        return
    if layout.syntax == "csv":
        yield from _csv_examples(first, content, layout)
        return
    for number, line in enumerate(split_lines(content), start=first):
        if line and not line.isspace():
            parsed = _or_reason(_parse, line, layout)
            if not isinstance(parsed, BlankLine):
                yield number, parsed


def _or_reason(parse: Callable[..., RawExample], *arguments: Any) -> RawExample | BadLine:
    try:
        return parse(*arguments)
    except BadLine as reason:
        return reason


def parse_line(line: bytes, syntax: str) -> RawExample:
    """The example of one line of a file that is read without --columns. Raises BadLine with the reason."""
    return _parse(line, Layout(syntax))


def _parse(line: bytes, layout: Layout) -> RawExample:
    syntax = layout.syntax
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise BadLine(TOO_LONG if line.rstrip() == OVERLONG else "not valid UTF-8") from None
    if not text.strip():
        raise BlankLine("empty line")
    if syntax == "text":
        text = clean_text(text)
        return RawExample("pair", (text, text), 1)
    if syntax == "tsv":
        return _from_cells(text.rstrip("\r\n").split("\t"), layout, "a TSV line")
    if syntax == "parallel":
        return _from_columns(text.rstrip("\r\n").split("\t"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadLine("not valid JSON") from None
    return example_of(value, layout.columns)


def _csv_examples(first: int, content: bytes, layout: Layout) -> Iterator[tuple[int, RawExample | BadLine]]:
    for lines, cells in csv_records(io.BytesIO(content)):
        if cells is None:
            yield first, BadLine("not valid CSV: a quote is not closed, or not doubled")
        elif cells and any(cells):
            yield first, _or_reason(_from_record, b"".join(lines), cells, layout)
        first += len(lines)


def csv_records(lines: Iterable[bytes]) -> Iterator[tuple[list[bytes], list[str] | None]]:
    """(its lines, its cells) of each CSV record; bytes that are no UTF-8 are surrogates in the cells.

    Cells are None for a line that breaks the rules of quotes, or opens a quote that does not close within LONGEST_LINE
    bytes; the lines after it are read anew. So a block of whole records gives the records that the file gives.
    """
    source, used, again = iter(lines), [], []  # the lines of this record; lines to read anew, the next one last

    def texts() -> Iterator[str]:
        size = 0
        while (line := again.pop() if again else next(source, None)) is not None:
            size = size + len(line) if used else len(line)
            used.append(line)
            if size > LONGEST_LINE:
                raise csv.Error(TOO_LONG)
            text = line.decode(errors="surrogateescape")
            end = len(text) - 2 * text.endswith("\r\n")
            yield text[:end].replace("\r", _BARE_RETURN) + text[end:]

    csv.field_size_limit(LONGEST_LINE)
    whole = False
    while not whole:
        try:
            for cells in csv.reader(texts(), strict=True):
                yield used.copy(), [cell.replace(_BARE_RETURN, "\r") for cell in cells]
                used.clear()
            whole = True
        except csv.Error:
            bad, *rest = used
            used.clear()
            again.extend(reversed(rest))
            yield [bad], None


def _from_record(record: bytes, cells: list[str], layout: Layout) -> RawExample:
    try:
        record.decode()
    except UnicodeDecodeError:
        raise BadLine(TOO_LONG if record.rstrip() == OVERLONG else "not valid UTF-8") from None
    return _from_cells(cells, layout, "a CSV record")


def _from_cells(cells: list[str], layout: Layout, what: str) -> RawExample:
    if layout.columns is None:
        return _from_texts(cells, what)
    if layout.header and len(cells) != len(layout.header):
        raise BadLine(f"{what} has {len(cells)} columns, the header has {len(layout.header)}")
    names = layout.header or map(str, range(1, len(cells) + 1))
    return example_by_columns(dict(zip(names, cells)), layout.columns)


def _from_row(row: dict, layout: Layout) -> RawExample:
    """A row of a Parquet file; a null list of negatives or scores is none."""
    if layout.columns is not None:
        return example_by_columns(row, layout.columns)
    optional = QUERY_KEYS - {"query", "pos"}
    return _from_object({key: value for key, value in row.items() if value is not None or key not in optional})


def example_of(value: Any, columns: Columns | None = None) -> RawExample:
    """The example of a line's JSON value. Raises BadLine with the reason."""
    if isinstance(value, list):
        return _from_texts(value, "a list")
    if not isinstance(value, dict):
        raise BadLine(f"a JSON {type(value).__name__} is neither a list nor an object")
    forms = [keys for keys in FORMS if keys <= value.keys()]
    if columns is not None and (not forms or has_columns(value, columns)):
        used = {name if name in value else name.split(".")[0] for name in columns.names}
        return example_by_columns(value, columns)._replace(ignored_keys=_ignored(value.keys() - used))
    if len(forms) != 1:
        raise BadLine(
            'an object must have one of "texts", "set", or "query" and "pos" (also "neg", "pos_scores", "neg_scores"), '
            f"not {_quoted(value)}: name its keys, as in --columns=query=question,positive=answer")
    known = QUERY_KEYS if "query" in forms[0] else forms[0]
    return _from_object(value)._replace(ignored_keys=_ignored(value.keys() - known))


def _ignored(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(map(printable, keys)))


def _quoted(keys: Iterable[str]) -> str:
    first = [f'"{printable(key)}"' for key in itertools.islice(keys, 10)]
    return ", ".join(first) or "no keys"


def _from_object(value: dict) -> RawExample:
    if "texts" in value:
        return _from_texts(value["texts"], '"texts"')
    if "set" in value:
        texts = tuple(dict.fromkeys(_clean_list(value["set"], '"set"')))  # a text twice is no pair
        if len(texts) < 2:
            raise BadLine("a set of fewer than two different texts")
        return RawExample("set", texts, len(texts) - 1)
    return _from_query(value)


def _from_texts(values: Any, what: str) -> RawExample:
    texts = _clean_list(values, what)
    if len(texts) == 2:
        return RawExample("pair", texts, 1)
    if len(texts) == 3:
        return RawExample("triplet", texts, 1)
    advice = {"a TSV line": ": keep only the columns of texts, name them with --columns, or set --tsv=parallel",
              "a CSV record": ": keep only the columns of texts, or name them with --columns"}.get(what, "")
    raise BadLine(f"{what} must have 2 or 3 texts{advice}")


def _from_columns(cells: list[str]) -> RawExample:
    source, *translations = cells
    translations = [clean_text(cell) for cell in translations if cell.strip()]
    if not translations:
        raise BadLine("no translation")
    return RawExample("lists", (clean_text(source), *translations), len(translations))


def _from_query(value: dict) -> RawExample:
    positives = _clean_list(value["pos"], '"pos"')
    negatives = _clean_list(value.get("neg", []), '"neg"')
    if not positives:
        raise BadLine('"pos" is empty')
    scores = None
    if "pos_scores" in value or "neg_scores" in value:
        scores = _scores(value, "pos_scores", len(positives)) + _scores(value, "neg_scores", len(negatives))
    return RawExample("lists", (clean_text(value["query"]), *positives, *negatives), len(positives), scores)


def _scores(value: dict, key: str, count: int) -> tuple[float, ...]:
    scores = value.get(key, [float("nan")] * count)
    if not isinstance(scores, list) or any(type(score) not in (int, float) for score in scores):
        raise BadLine(f'"{key}" is not a list of numbers')
    if len(scores) != count:
        raise BadLine(f'"{key}" does not have one score for each text')
    return tuple(score_of(score, f'"{key}"') for score in scores)


def _clean_list(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise BadLine(f"{what} is not a list of texts")
    return tuple([clean_text(value) for value in values])


def split_lines(block: bytes) -> list[bytes]:
    """The lines of a block; only a line feed ends a line (a carriage return before it is stripped with the text)."""
    lines = block.split(b"\n")
    return lines if lines[-1] else lines[:-1]
