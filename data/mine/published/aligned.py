"""Files of equally many lines, where a line of one is the other's translation or paraphrase; read side by side."""

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.mine.published.records import files_in, whole_or_empty
from data.mine.reading import MAX_LINE_BYTES, damage_named, members, plain_name
from data.mine.source import Counts

_END = object()


class Side(NamedTuple):
    """One of the files: on its own, or in an archive."""

    path: Path
    member: str  # "" if the path is no archive

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def names_in(path: Path, counts: Counts) -> list[str]:
    """The names of the files of an archive; of another file its own name, without the suffix of its compression."""
    names: list[str] = []
    with damage_named(path, counts):
        names.extend(name for name, _ in members(path))
    return names


def sides_of(unit: Sequence[Path], patterns: Sequence[str], expected: str, counts: Counts) -> list[Side]:
    """The file for each pattern among the unit's files and in its archives. Raises ValueError if there is not one."""
    found: list[list[Side]] = [[] for _ in patterns]
    for path in unit:
        for name in names_in(path, counts):
            for sides, pattern in zip(found, patterns):
                if re.search(pattern, name):
                    sides.append(Side(path, "" if name == plain_name(path) else name))
    if any(len(sides) != 1 for sides in found):
        listed = "; ".join(", ".join(map(str, sides)) or f"no file like {pattern}"
                           for sides, pattern in zip(found, patterns))
        raise ValueError(f"{', '.join(map(str, unit))}: one file for each side is needed, found {listed}; expected "
                         f"{expected}")
    return [sides[0] for sides in found]


def aligned_lines(sides: Sequence[Side], counts: Counts) -> Iterator[tuple[str, ...]]:
    """The lines with the same number, one of each side, stripped; "" for one that is not UTF-8 or too long.

    Raises ValueError after the last common line if one file has more lines, unless a file is cut short.
    """
    notes = len(counts.notes)
    for number, lines in enumerate(itertools.zip_longest(*(_lines(side, counts) for side in sides), fillvalue=_END)):
        if _END not in lines:
            yield lines
        elif len(counts.notes) > notes:  # a file that is cut short ends earlier
            return
        else:
            shorter = sides[lines.index(_END)]
            longer = next(side for side, line in zip(sides, lines) if line is not _END)
            raise ValueError(f"{shorter} has {number} lines and {longer} has more: they do not belong together line by "
                             "line")


def _lines(side: Side, counts: Counts) -> Iterator[str]:
    with damage_named(side.path, counts):
        for _, file in files_in(side.path, f"^{re.escape(side.member)}$" if side.member else r"."):
            while line := file.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    line = _pass_over(file, counts)
                yield whole_or_empty(line, counts)
            return


def _pass_over(file: io.BufferedReader, counts: Counts) -> bytes:
    counts[f"line longer than {MAX_LINE_BYTES:,} bytes"] += 1
    while (piece := file.readline(MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
        pass
    return b""
