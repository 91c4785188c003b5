"""What a miner is: a Source, and the Counts that it keeps."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Unit = tuple[Path, ...]  # input files that are mined together, by one process


class Counts(collections.Counter):
    """{rule: how many records it left out}; `notes` are sentences for the manifest: that a file is cut short."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.notes: list[str] = []


def one_file_each(paths: Sequence[Path]) -> list[Unit]:
    """Every input file is a unit of its own."""
    return [(path,) for path in paths]


@dataclasses.dataclass(frozen=True)
class Source:
    """A miner. It works in one of two ways.

    `mine(unit, settings, counts)` yields (output name, value) for the files of a unit. A value is one line of the file
    OUTPUT/<output name>.jsonl.gz in a form that data/formats.py lists: ["a", "b"], {"query", "pos", "neg"}, {"set"}.
    An output whose name ends in .tsv is a file of translations, OUTPUT/<output name>.gz: its values are lists of
    columns.
    A third item, if there is one, is a JSON value that says where the texts are from and who wrote them: one line of
    OUTPUT/<output name>.attribution.gz.

    If records of several places belong together, `scatter(unit, settings, counts)` yields (key, record) and
    `join(records, settings, counts)` gets all records of one key, in the order of the units and of their files, and
    yields the same. Records are JSON values. They lie on disk in between, so memory stays bounded. Both
    functions run on all cores: scatter by unit, join by partition of the keys. The keys come in a fixed order that is
    not theirs. If there are fewer units than cores, a unit may share its work with `reading.helpers`.

    Rules that leave something out count it: counts["title shorter than --min_title"] += 1.
    """

    name: str
    expects: str  # which file it reads, for --help
    licence: str  # of the texts, and how they must be attributed
    settings: type  # frozen dataclass of its own flags
    mine: Callable[[Unit, Any, Counts], Iterator[tuple]] | None = None
    scatter: Callable[[Unit, Any, Counts], Iterator[tuple[str, Any]]] | None = None
    join: Callable[[list[Any], Any, Counts], Iterator[tuple]] | None = None
    files: str = r".+"  # regular expression of the names taken from a folder; a file that is named is always taken
    units: Callable[[Sequence[Path]], list[Unit]] = one_file_each
    merge: Callable[[dict[str, int], Any], dict[str, str]] | None = None  # {output: lines} -> {output: its final name}
    version: int = 1  # of the rules: other rules mean that a finished output is mined again


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a source without flags of its own."""
