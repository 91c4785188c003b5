"""Lines of an evaluation file, plain or gzipped, with the place that an error names."""

import gzip
import pathlib
import zlib
from collections.abc import Iterator


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
