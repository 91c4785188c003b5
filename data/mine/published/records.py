"""Records of published files, checked against the layout that they were published in.

A `Layout` reads the records of one file: lines of JSON, elements of a JSON array, rows of a table. A source's own
function turns a record into training lines, or raises BadRecord if it is not of the layout. Bad records are counted,
and a note of the manifest says where the first one is. A file without one good record is the wrong file: an error names
it, says what is wrong with its first record, and what was expected.
"""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.mine.published import json_stream
from data.mine.reading import (
    BAD_LINES_OF_A_WRONG_FILE,
    CHUNK_BYTES,
    as_file,
    damage_named,
    decompressed,
    in_utf8,
    members,
    plain_name,
    split_lines,
)
from data.mine.source import Counts

BAD = "record of another shape than its file's"
MAX_FIELD = 1 << 22  # characters of one field of a CSV file
_HIDDEN = re.compile(r"(^|/)(\.[^/]*$|__MACOSX/)")  # what editors and file managers leave in archives
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRecord(ValueError):
    """A record that is not of its layout; the message is the reason."""


Records = Iterator[tuple[str, Any]]  # (where it is, the record); a BadRecord stands for one that cannot be read
Results = Iterator[tuple[str, Any]]  # (output name or key, value), as a Source yields them


class Layout(NamedTuple):
    """How a published file looks."""

    expected: str  # for errors: which file it is, and what is in it
    read: Callable[[io.BufferedReader, Counts], Records]
    inside: str = r"."  # regular expression of the names that are taken from an archive
    small_files: bool = False  # of one record each: one that is damaged is a bad record


@dataclasses.dataclass
class _Tally:
    """The good and bad records of a file, or of many small ones."""

    name: str
    expected: str
    good: int = 0
    bad: int = 0
    first: str = ""  # bad record

    def add_bad(self, reason: str) -> None:
        self.bad, self.first = self.bad + 1, self.first or reason

    def is_another_file(self) -> bool:
        return not self.good and self.bad >= BAD_LINES_OF_A_WRONG_FILE

    def note(self, counts: Counts) -> None:
        if self.bad:
            counts[BAD] += self.bad
            counts.notes.append(f"{self.name}: {self.bad} of {self.bad + self.good} records are of another shape; the "
                                f"first: {self.first}")

    def check(self) -> None:
        if not self.good:
            raise ValueError(f"{self.name}: {self.first or 'the file has no record'}; expected {self.expected}")


def results_of(
    paths: Iterable[Path], layout: Layout, counts: Counts, convert: Callable[[Any], Iterable[tuple[str, Any]]]
) -> Results:
    """What `convert` makes of each record of the files, and of the wanted files of archives.

    Raises ValueError naming a file that is damaged or has no record of this layout.
    """
    paths = tuple(paths)
    together = _Tally(str(paths[0]), layout.expected)
    for path in paths:
        found, notes = False, len(counts.notes)
        with damage_named(path, counts):
            for name, file in files_in(path, layout.inside):
                found = True
                if layout.small_files:
                    yield from _of_small_file(name, file, layout, counts, convert, together)
                else:
                    yield from _of_file(file, layout, counts, convert, _Tally(name, layout.expected))
        if not found:
            raise ValueError("; ".join([f"{path} holds no file that this source reads", *counts.notes[notes:],
                                        f"expected {layout.expected}"]))
    if layout.small_files:
        together.note(counts)
        together.check()


def files_in(path: Path, inside: str) -> Iterator[tuple[str, io.BufferedReader]]:
    """(name, decompressed UTF-8 text) of a file, or of each file of an archive whose name has a match of `inside`.

    A file must be read before the next one is asked for. Use it inside damage_named.
    """
    plain, wanted = plain_name(path), re.compile(inside)
    for name, chunks in members(path, lambda name: name == plain or (
            wanted.search(name) is not None and not _HIDDEN.search(name))):
        if name == plain:
            yield str(path), as_file(in_utf8(chunks))
        else:  # it may be compressed once more
            raw = as_file(chunks)
            yield f"{path}:{name}", as_file(in_utf8(decompressed(path, raw, raw.peek(8))))


def _of_file(file: io.BufferedReader, layout: Layout, counts: Counts, convert: Any, tally: _Tally) -> Results:
    try:
        yield from _converted(file, layout, counts, convert, tally)
    except json_stream.JsonError as error:
        raise ValueError(f"{tally.name}: {error}; expected {layout.expected}") from error
    finally:
        tally.note(counts)
    tally.check()


def _of_small_file(
    name: str, file: io.BufferedReader, layout: Layout, counts: Counts, convert: Any, tally: _Tally
) -> Results:
    try:
        yield from _converted(file, layout, counts, convert, tally, f"{name}, ")
    except (json_stream.JsonError, json_stream.JsonCut) as error:
        tally.add_bad(f"{name}: {error}")


def _converted(
    file: io.BufferedReader, layout: Layout, counts: Counts, convert: Any, tally: _Tally, place: str = ""
) -> Results:
    for where, record in layout.read(file, counts):
        try:
            if isinstance(record, BadRecord):
                raise record
            results = list(convert(record))
        except BadRecord as error:
            tally.add_bad(f"{place}{where} {error}")
            if tally.is_another_file():
                return
            continue
        tally.good += 1
        yield from results


def lines_in(file: io.BufferedReader, counts: Counts) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank, without its end. A wrong byte becomes half a surrogate pair."""
    chunks = iter(lambda: file.read1(CHUNK_BYTES), b"")
    for number, line in enumerate(split_lines(chunks, counts), start=1):
        if line and not line.isspace():
            yield number, line.removesuffix(b"\r").decode("utf-8", "surrogateescape")


def json_lines(file: io.BufferedReader, counts: Counts) -> Records:
    """One JSON value a line."""
    for number, line in lines_in(file, counts):
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError):
            yield f"line {number}", BadRecord("is not JSON")


def json_array(*path: str) -> Callable[[io.BufferedReader, Counts], Records]:
    """A reader of the elements of a JSON array that the keys lead to."""
    def read(file: io.BufferedReader, counts: Counts) -> Records:
        return json_stream.elements(file, *path)
    return read


def json_values(file: io.BufferedReader, counts: Counts) -> Records:
    """JSON values one after the other, each over any number of lines."""
    return json_stream.values(file)


def text_lines(file: io.BufferedReader, counts: Counts) -> Records:
    """The lines as they are."""
    return ((f"line {number}", line) for number, line in lines_in(file, counts))


def tab_cells(columns: int | None = None) -> Callable[[io.BufferedReader, Counts], Records]:
    """A reader of lines of `columns` cells between tabs, without quotes; None: any number."""
    def read(file: io.BufferedReader, counts: Counts) -> Records:
        for number, line in lines_in(file, counts):
            cells = line.split("\t")
            right = columns in (None, len(cells))
            yield f"line {number}", cells if right else BadRecord(f"has {len(cells)} columns, not {columns}")
    return read


def tab_table(file: io.BufferedReader, counts: Counts) -> Records:
    """Rows between tabs as {column: cell}, below a header line, without quotes. The last columns may be left out."""
    header: list[str] = []
    for number, line in lines_in(file, counts):
        cells = line.split("\t")
        if not header:
            header = cells
        elif len(cells) > len(header):
            yield f"line {number}", BadRecord(f"has {len(cells)} columns, not the {len(header)} {_named(header)}")
        else:
            yield f"line {number}", dict(zip(header, cells))


def csv_rows(delimiter: str = ",") -> Callable[[io.BufferedReader, Counts], Records]:
    """A reader of rows with quoted fields, which may hold line ends, as lists of cells."""
    def read(file: io.BufferedReader, counts: Counts) -> Records:
        csv.field_size_limit(MAX_FIELD)
        rows = csv.reader(io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""), delimiter=delimiter)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield f"line {rows.line_num}", BadRecord(f"is not CSV: {error}")
                continue
            if row is None:
                return
            if row:
                yield f"line {rows.line_num}", row
    return read


def csv_table(delimiter: str = ",") -> Callable[[io.BufferedReader, Counts], Records]:
    """A reader of rows as {column: cell}, below a header row."""
    def read(file: io.BufferedReader, counts: Counts) -> Records:
        header: list[str] = []
        for where, row in csv_rows(delimiter)(file, counts):
            if isinstance(row, BadRecord):
                yield where, row
            elif not header:
                header = row
            elif len(row) != len(header):
                yield where, BadRecord(f"has {len(row)} columns, not the {len(header)} {_named(header)}")
            else:
                yield where, dict(zip(header, row))
    return read


def _named(header: list[str]) -> str:
    return ", ".join(name[:30] for name in header[:12])


def first_byte(file: io.BufferedReader) -> bytes:
    """The first byte of a file that is no white space, if one is near its beginning; the file is not moved."""
    return file.peek(64).lstrip()[:1]


# Fields of a record. Each raises BadRecord with the reason.

def field(record: Any, name: str, kind: type) -> Any:
    """record[name], which must be of this type."""
    if not isinstance(record, dict):
        raise BadRecord(f"is a {type(record).__name__}, not an object")
    if name not in record:
        raise BadRecord(f"has no field {name!r}")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadRecord(f"field {name!r} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def text(record: Any, name: str) -> str:
    """The text record[name] without white space around it; "" if it is null."""
    if isinstance(record, dict) and record.get(name, "") is None:
        return ""
    return whole(field(record, name, str))


def whole(value: str) -> str:
    """The text without white space around it; BadRecord if its bytes were not UTF-8, or it has half a surrogate."""
    if not value.isascii() and _HALF_SURROGATE.search(value):
        raise BadRecord("has a text that is not valid UTF-8")
    return value.strip()


def texts(values: Any, name: str) -> list[str]:
    """The texts of a list; `name` is the field's."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRecord(f"field {name!r} is not a list of texts")
    return [whole(value) for value in values]


def objects(record: Any, name: str, default: list | None = None) -> list[dict]:
    """The list of objects record[name]; `default`, if there is one, for a field that is absent or null."""
    if default is not None and isinstance(record, dict) and record.get(name) is None:
        return default
    values = field(record, name, list)
    if not all(isinstance(value, dict) for value in values):
        raise BadRecord(f"field {name!r} is not a list of objects")
    return values


def one_line(value: str) -> str:
    """The text with each run of white space as one space."""
    return " ".join(value.split())


def pair(output: str, first: str, second: str, counts: Counts, rule: str) -> Results:
    """The pair, if neither text is empty; else it is counted under the rule."""
    if first and second:
        yield output, [first, second]
    else:
        counts[rule] += 1


def whole_or_empty(line: bytes, counts: Counts) -> str:
    """The text of a line that cannot be left out, without white space around it; "" if it is not UTF-8 (counted)."""
    try:
        return line.decode().strip()
    except UnicodeDecodeError:
        counts["line that is not valid UTF-8"] += 1
        return ""
