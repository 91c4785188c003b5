"""Writing what is mined: parts, one folder each, and the output that they are joined to.

A part appears whole or not at all (a folder that is renamed when it is finished), so a killed run goes on with the
parts that are there. Gzip files carry no time and no name: the same input gives the same bytes.
"""

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from data.files import read_json, write_json
from data.formats import BadLine, example_of, parse_line
from data.mine.source import Counts

PART_FILE = "part.json"  # what is in a part: left_out, notes, outputs
GZIP_LEVEL = 6
SUFFIX = ".jsonl.gz"
PARALLEL = ".tsv"  # output names with this end are files of translations, whose values are lists of columns
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
    """The line of a training file. Raises BadLine if it would be no training example."""
    value = clean(value)
    if output.endswith(PARALLEL):
        line = "\t".join(" ".join(column.split()) for column in value).encode() + b"\n"
        parse_line(line, "parallel")
        return line
    example_of(value)
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


@contextlib.contextmanager
def gzip_file(path: Path, level: int = GZIP_LEVEL) -> Iterator[IO[bytes]]:
    """A new gzip file without name and time in it."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=0) as file:
        yield file


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


def write_part(folder: Path, values: Iterable[tuple[str, Any]], counts: Counts) -> None:
    """Writes (output name, value) pairs as the training files of one part.

    A value that is no training example, such as a pair with an empty text, is left out and counted.
    """
    with new_part(folder) as temporary:
        outputs: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            for name, value in values:
                try:
                    line = line_of(name, value)
                except BadLine as error:
                    counts[f"no training example: {error}"] += 1
                    continue
                if name not in files:
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    files[name] = stack.enter_context(gzip_file(temporary / file_name(name)))
                    outputs[name] = 0
                files[name].write(line)
                outputs[name] += 1
        write_summary(temporary, counts, outputs=outputs)


def write_summary(folder: Path, counts: Counts, **more: Any) -> None:
    write_json(folder / PART_FILE, {"left_out": dict(counts), "notes": counts.notes} | more)


def total(parts: list[Path]) -> tuple[Counts, dict[str, int]]:
    """(what the parts left out, {output: its lines})."""
    counts, outputs = Counts(), {}
    for part in parts:
        summary = read_json(part / PART_FILE)
        counts.update(summary["left_out"])
        counts.notes += summary["notes"]
        for name, lines in summary.get("outputs", {}).items():
            outputs[name] = outputs.get(name, 0) + lines
    return counts, outputs


def join_parts(parts: list[Path], finals: dict[str, str], folder: Path) -> None:
    """Writes the files of the final names: the outputs that have this final name, in the order of their names, each
    in the order of the parts. Gzip files one after the other are a gzip file."""
    for name, final in sorted(finals.items()):
        (folder / final).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / file_name(final), "ab") as joined:
            for part in parts:
                if (path := part / file_name(name)).exists():
                    with open(path, "rb") as file:
                        shutil.copyfileobj(file, joined, 1 << 20)
            joined.flush()
            os.fsync(joined.fileno())


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
