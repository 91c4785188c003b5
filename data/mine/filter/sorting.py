"""Pairs of 64-bit numbers (key, value), sorted on disk in bounded memory: runs are sorted and written one by one, and
then read together by ranges of keys.

data/mine/groups.py brings JSON records together; ids need no JSON, and as arrays they are sorted many times faster.
A run is one file: its keys in ascending order, then its values. If the values were added in ascending order, run after
run, rows of one key come out in the order of their values: the sort is stable.
"""

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

KEYS = 1 << 64  # a key is below
ROW_BYTES = 96  # of memory that a row takes while it is sorted: two numbers, their order, two copies, temporaries
SUFFIX = ".run"


class Rows(NamedTuple):
    keys: np.ndarray  # [M] uint64
    values: np.ndarray  # [M] uint64


def sorted_rows(keys: np.ndarray, values: np.ndarray) -> Rows:
    """The rows in the order of their keys; those of one key stay in their order."""
    order = np.argsort(keys, kind="stable")
    return Rows(keys[order], values[order])


class Runs:
    """Writes rows as sorted runs of `memory` bytes: FOLDER/NAME-00000.run and so on."""

    def __init__(self, folder: Path, name: str, memory: int):
        self._folder, self._name, self._limit = folder, name, max(1, memory // ROW_BYTES)
        self._waiting: list[Rows] = []
        self._rows = self._runs = 0

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        for first in range(0, len(keys), self._limit):
            part = Rows(keys[first : first + self._limit], values[first : first + self._limit])
            if self._rows + len(part.keys) > self._limit:
                self.flush()
            self._waiting.append(part)
            self._rows += len(part.keys)

    def flush(self) -> None:
        """Writes what waits; call it at the end."""
        if self._rows:
            rows = sorted_rows(*map(np.concatenate, zip(*self._waiting)))
            with open(self._folder / f"{self._name}-{self._runs:05d}{SUFFIX}", "wb") as file:
                for column in rows:
                    file.write(np.ascontiguousarray(column, "<u8").data)
            self._runs += 1
        self._waiting, self._rows = [], 0


def runs_in(folders: Sequence[Path], name: str) -> list[Path]:
    """The runs of this name, in the order of the folders and of their writing."""
    return [path for folder in folders for path in sorted(folder.glob(f"{name}-*{SUFFIX}"))]


def rows_in(runs: Sequence[Path]) -> int:
    return sum(path.stat().st_size // 16 for path in runs)


def merged(runs: Sequence[Path], memory: int, low: int = 0, high: int = KEYS) -> Iterator[Rows]:
    """The rows of low <= key < high of all runs, sorted by key, in blocks that take at most `memory` bytes.

    Rows of one key are in the order of the runs; they may stand in two blocks or more.
    """
    yield from _merged(runs, low, high, max(1, memory // ROW_BYTES))


def _merged(runs: Sequence[Path], low: int, high: int, limit: int) -> Iterator[Rows]:
    places = [place for path in runs if (place := _place_of(path, low, high)).first < place.end]
    count = sum(place.end - place.first for place in places)
    if not count:
        return
    if count <= limit:
        yield sorted_rows(*map(np.concatenate, zip(*map(_rows_at, places))))
    elif high - low == 1:
        for place in places:
            for first in range(place.first, place.end, limit):
                yield _rows_at(place._replace(first=first, end=min(place.end, first + limit)))
    else:
        middle = (low + high) // 2
        yield from _merged(runs, low, middle, limit)
        yield from _merged(runs, middle, high, limit)


class _Slice(NamedTuple):
    """Rows first to end of a run of that many rows."""

    path: Path
    rows: int
    first: int
    end: int


def _place_of(path: Path, low: int, high: int) -> _Slice:
    """Where the keys of a range lie. Files are read, not mapped: mapped pages would count as memory of the process."""
    with open(path, "rb", buffering=0) as file:
        def key_at(row: int) -> int:
            return int.from_bytes(os.pread(file.fileno(), 8, 8 * row), "little")

        rows = os.fstat(file.fileno()).st_size // 16
        first, end = (bisect.bisect_left(range(rows), bound, key=key_at) for bound in (low, high))
    return _Slice(path, rows, first, end)


def _rows_at(place: _Slice) -> Rows:
    path, rows, first, end = place
    return Rows(*(np.fromfile(path, "<u8", end - first, offset=8 * (first + column * rows)) for column in (0, 1)))


def ranges(count: int) -> list[tuple[int, int]]:
    """All keys in `count` ranges [low, high) of the same size."""
    bounds = [KEYS * each // count for each in range(count + 1)]
    return list(itertools.pairwise(bounds))


def repeated(runs: Sequence[Path], memory: int, low: int, high: int) -> Iterator[Rows]:
    """(value, first value of the same key) of each row whose key an earlier row has, in blocks."""
    last_key, first_value = -1, np.uint64(0)
    for keys, values in merged(runs, memory, low, high):
        is_new = np.ones(len(keys), bool)
        is_new[1:] = keys[1:] != keys[:-1]
        is_new[0] = int(keys[0]) != last_key
        starts = np.maximum.accumulate(np.where(is_new, np.arange(len(keys)), -1))
        firsts = np.where(starts < 0, first_value, values[starts])
        yield Rows(values[~is_new], firsts[~is_new])
        last_key, first_value = int(keys[-1]), firsts[-1]
