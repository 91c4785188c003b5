"""Lines, table rows and JSON objects of an evaluation file, plain or gzipped, each with its place for errors.

Blank lines are skipped here, for all readers, except in files that belong together line by line (aligned_lines).
"""

import gzip
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import logging

Line = tuple[str, str]  # ("path:number", text)


def all_lines(path: str | pathlib.Path) -> Iterator[Line]:
    """Yields ("path:number", text) for each line of a UTF-8 file, blank ones too, without its line end.

    Only \\n ends a line: texts may hold the other characters that Unicode calls line ends. Drops a byte-order mark.
    Raises ValueError for a folder, for bytes that are not UTF-8 (naming the line) and for a truncated or damaged gzip
    file (naming the file); OSError if the file cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: a file is wanted")
    number = 0
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                place = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{place}: not UTF-8: {error.reason} at byte {error.start} of the line; "
                                     "save the file as UTF-8") from error
                yield place, text.rstrip("\r\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: damaged gzip file after line {number}: {error}") from error


def numbered_lines(path: str | pathlib.Path) -> Iterator[Line]:
    """The lines of all_lines that are not blank, with their numbers in the file."""
    return (line for line in all_lines(path) if line[1].strip())


def aligned_lines(
    *paths: pathlib.Path, read: Callable[[pathlib.Path], Iterable[Line]] = all_lines
) -> Iterator[tuple[Line, ...]]:
    """Line i of every file, for files that belong together line by line; lines that are blank in all are skipped.

    Raises ValueError if a file ends while another one has a line that is not blank.
    """
    for lines in itertools.zip_longest(*map(read, paths)):
        filled = [line for line in lines if line and line[1].strip()]
        if filled and None in lines:
            raise ValueError(f"{filled[0][0]}: there is no such line in {paths[lines.index(None)]}")
        if filled:
            yield lines


def column_names(header: str) -> list[str]:
    """The names in the header of a .tsv, in lower case: headers are compared without regard to case."""
    return [name.strip().lower() for name in header.split("\t")]


def table_rows(path: str | pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """("path:number", {column: cell}) of each row of an unquoted .tsv whose header names at least `columns`.

    Column names are in lower case, whatever the file has.
    """
    lines = numbered_lines(path)
    place, header = next(lines, (f"{path}:1", ""))
    names = column_names(header)
    for column in columns:
        if names.count(column) > 1:
            raise ValueError(f"{place}: the header names {column} {names.count(column)} times: {header!r}")
    missing = [column for column in columns if column not in names]
    if missing:
        there = ", ".join(header.split("\t"))
        raise ValueError(f"{place}: the header lacks {', '.join(missing)}; it has {there or 'nothing'}")
    for place, line in lines:
        cells = line.split("\t")
        if len(cells) != len(names):
            raise ValueError(f"{place}: {len(cells)} tab-separated columns, but the header has {len(names)}")
        yield place, dict(zip(names, cells))


def json_objects(path: str | pathlib.Path) -> Iterator[tuple[str, dict]]:
    """("path:number", object) of each line; ValueError naming the line that is no JSON object."""
    for place, line in numbered_lines(path):
        yield place, parse_object(line, place)


def parse_object(line: str, place: str) -> dict:
    """The JSON object that a line holds; ValueError naming the place if it holds something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError; an integer too long; [[[[...
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: not a JSON object: {line[:80]!r}")
    return value


def check_text(text: object, what: str, *, may_be_empty: bool = False) -> None:
    """Raises ValueError, which begins with `what`, if a value of a JSON object is no text that can be embedded."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is not a string: {json.dumps(text)[:80]}")
    if not may_be_empty and not text.strip():
        raise ValueError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON's "\ud800"
        raise ValueError(f"{what} has half a surrogate pair: {text[:80]!r}") from None


def file_title(path: str | pathlib.Path) -> str:
    """The name of a file without its folder and suffixes, which becomes the name of its task."""
    return re.sub(r"(\.(jsonl|json|tsv|txt))?(\.gz)?$", "", pathlib.Path(path).name, flags=re.IGNORECASE)


def log_left_out(path: str | pathlib.Path, count: int, what: str) -> None:
    """Logs how many of `what` are left out of a file, if any are."""
    if count:
        logging.info("%s: left out %d %s", path, count, what)
