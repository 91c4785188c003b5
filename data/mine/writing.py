"""Writing what is mined: parts, one folder each, and the output that they are joined to.

A part appears whole or not at all (a folder that is renamed when it is finished), so a killed run goes on with the
parts that are there. Gzip files carry no time and no name: the same input gives the same bytes.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.examples import BadLine
from data.files import read_json, write_json
from data.formats import example_of, parse_line
from data.mine.reading import CountedFile
from data.mine.source import Counts

PART_FILE = "part.json"  # what is in a part: left_out, notes, outputs
GZIP_LEVEL = 6
BUFFER_BYTES = 1 << 25
SUFFIX = ".jsonl.gz"
PARALLEL = ".tsv"  # output names with this end are files of translations, whose values are lists of columns
ATTRIBUTION = ".attribution.gz"  # beside an output: the sources and authors of its texts, a JSON value per line
_HALF_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(value: Any) -> Any:
    """The value with texts that UTF-8 can hold: half surrogate pairs become U+FFFD, NULs spaces; white space at both
    ends is removed."""
    if isinstance(value, str):
        if not value.isascii():
            value = _HALF_SURROGATES.sub("\ufffd", value)
        return value.replace("\0", " ").strip()
    if isinstance(value, list | tuple):
        return [clean(each) for each in value]
    if isinstance(value, dict):
        return {key: clean(each) for key, each in value.items()}
    return value


def file_name(output: str) -> str:
    """The name of an output's file."""
    return output + (".gz" if output.endswith(PARALLEL) else SUFFIX)


def line_of(output: str, value: Any) -> bytes:
    """The line of a training file, without its end. Raises BadLine if it would be no training example."""
    value = clean(value)
    if output.endswith(PARALLEL):
        line = "\t".join(" ".join(column.split()) for column in value).encode()
        parse_line(line, "parallel")
        return line
    example_of(value)
    return json.dumps(value, ensure_ascii=False).encode()


def gzip_member(data: bytes) -> bytes:
    """A gzip file without name and time in it."""
    return zlib.compress(data, GZIP_LEVEL, wbits=31)


@contextlib.contextmanager
def new_part(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder` if the block succeeds."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class LineFiles:
    """Packed files of lines, by name. Lines wait in memory, BUFFER_BYTES of all files together. Each time that they are
    written, every file gets one more gzip member or zstd frame, so any number of files can grow at once."""

    def __init__(self, folder: Path, compress: Callable[[bytes], bytes] = gzip_member):
        self._folder, self._compress = folder, compress
        self._waiting: dict[str, list[bytes]] = {}
        self._bytes = 0

    def add(self, name: str, line: bytes) -> None:
        """Adds a line, which has no line feed at its end."""
        self._waiting.setdefault(name, []).append(line)
        self._bytes += len(line)
        if self._bytes > BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for name, lines in self._waiting.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(self._compress(b"\n".join([*lines, b""])))
        self._waiting, self._bytes = {}, 0


def write_part(folder: Path, examples: Iterable[tuple], counts: Counts) -> None:
    """Writes what a source yields as the training files of one part: (output name, value[, attribution]).

    A value that is no training example, such as a pair with an empty text, is left out and counted.
    """
    with new_part(folder) as temporary:
        lines: dict[str, int] = {}
        outputs = LineFiles(temporary)
        for name, value, *attribution in examples:
            try:
                line = line_of(name, value)
            except BadLine as error:
                counts[f"no training example: {error}"] += 1
                continue
            outputs.add(file_name(name), line)
            for each in attribution:
                outputs.add(name + ATTRIBUTION, json.dumps(clean(each), ensure_ascii=False).encode())
            lines[name] = lines.get(name, 0) + 1
        outputs.flush()
        write_summary(temporary, counts, outputs=lines)


def write_summary(folder: Path, counts: Counts, **more: Any) -> None:
    write_json(folder / PART_FILE, {"left_out": dict(+counts), "notes": counts.notes} | more)


def total(parts: list[Path]) -> tuple[Counts, dict[str, int], dict[str, str]]:
    """(what the parts left out, {output: its lines}, {input: its SHA-256})."""
    counts, outputs, checksums = Counts(), {}, {}
    for part in parts:
        summary = read_json(part / PART_FILE)
        counts.update(summary["left_out"])
        counts.notes += summary["notes"]
        for name, lines in summary.get("outputs", {}).items():
            outputs[name] = outputs.get(name, 0) + lines
        checksums |= summary.get("sha256", {})
    return counts, outputs, checksums


def join_parts(parts: list[Path], finals: dict[str, str], folder: Path) -> list[str]:
    """Writes the files of the final names: the outputs that have this final name, in the order of their names, each
    in the order of the parts; and their attributions. Gzip files one after the other are a gzip file.

    Returns the names of the files.
    """
    written = {}
    for name, final in sorted(finals.items()):
        (folder / final).parent.mkdir(parents=True, exist_ok=True)
        for own, joint in ((file_name(name), file_name(final)), (name + ATTRIBUTION, final + ATTRIBUTION)):
            for path in [part / own for part in parts]:
                if path.exists():
                    with open(path, "rb") as file, open(folder / joint, "ab") as joined:
                        shutil.copyfileobj(file, joined, 1 << 20)
                    written[joint] = None
    for name in written:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    return list(written)


def sha256_of(path: Path) -> str:
    with io.BufferedReader(CountedFile(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
