"""Lines, rows and JSON objects of an evaluation file, plain or gzipped, with the place that an error names."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator

from absl import logging


def numbered_lines(path: str | pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields ("path:number", text) for each line of a UTF-8 file, without its line end.

    Only \\n ends a line: texts may hold the other characters that Unicode calls line ends. Raises ValueError on invalid
    UTF-8 (naming the line) and on a truncated or damaged gzip file (naming the file); OSError if it cannot be read.
    """
    path = pathlib.Path(path)
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                place = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{place}: not UTF-8: {error.reason} at byte {error.start} of the line") from error
                yield place, text.rstrip("\r\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: damaged gzip file after line {number}: {error}") from error


def table_rows(path: str | pathlib.Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """("path:number", {column: cell}) of each row of an unquoted .tsv, whose header must name at least `columns`."""
    lines = numbered_lines(path)
    place, header = next(lines, (f"{path}:1", ""))
    names = header.split("\t")
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(f"{place}: the header lacks {', '.join(missing)}; it has {', '.join(names)}")
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
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError; an integer too long; [[[[...
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: not a JSON object: {line[:80]!r}")
    return value


def check_text(text: object, what: str, *, may_be_empty: bool = False) -> None:
    """ValueError that begins with `what` if a value of a JSON object is no text that can be embedded."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is not a string: {json.dumps(text)[:80]}")
    if not may_be_empty and not text.strip():
        raise ValueError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON's \ud800 alone
        raise ValueError(f"{what} has half a surrogate pair: {text[:80]!r}") from None


def log_left_out(path: str | pathlib.Path, count: int, what: str) -> None:
    """Says how many of `what` a protocol leaves out of a file, if any."""
    if count:
        logging.info("%s: left out %d %s", path, count, what)
