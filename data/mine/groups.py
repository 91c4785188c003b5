"""Records that belong together, brought together on disk: scattered into partitions by their key, then read one
partition at a time.

A record's place is the hash of its key. A partition holds a range of hashes, and its groups are handed out in the order
of their hashes, so the order of all groups depends neither on the number of partitions nor on the number of workers.
A partition that is larger than the memory it may use is scattered again, into narrower ranges.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.files import read_json
from data.mine.reading import chunks_of, import_zstandard, split_lines
from data.mine.source import Counts
from data.mine.writing import PART_FILE, LineFiles, new_part, write_summary

HASH_DIGITS = 24  # of 4 bits each: two keys never share them
RECORD_OVERHEAD = 150  # bytes of memory that a line takes beside its own, when it is read and sorted
GROUP_OVERHEAD = 8  # memory of a parsed record, in lengths of its line
MAX_PARTITIONS = 256
TOO_LARGE = "group of records too large for --memory"
_LEVEL = 1


def hash_of(key: str) -> str:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_DIGITS // 2).hexdigest()


class _Partitions:
    """Files of lines, by the range of their hash: `count` equal parts of the hashes from `low` to `high`."""

    def __init__(self, folder: Path, count: int, low: int, high: int):
        self._files = LineFiles(folder, import_zstandard().ZstdCompressor(level=_LEVEL).compress)
        self._count, self._low, self._width = count, low, high - low
        self.memory: dict[int, int] = {}  # that each partition takes, bytes
        self.hashes: set[bytes] = set()  # the first two

    def add(self, line: bytes) -> None:
        index = (int(line[:HASH_DIGITS], 16) - self._low) * self._count // self._width
        self._files.add(str(index), line)
        self.memory[index] = self.memory.get(index, 0) + len(line) + RECORD_OVERHEAD
        if len(self.hashes) < 2:
            self.hashes.add(line[:HASH_DIGITS])

    def close(self) -> None:
        self._files.flush()


def write_scattered(folder: Path, records: Iterable[tuple[str, Any]], partitions: int, counts: Counts) -> None:
    """Writes (key, record) pairs as one part: a file for each partition that has any."""
    with new_part(folder) as temporary:
        files = _Partitions(temporary, partitions, 0, 16 ** HASH_DIGITS)
        for key, record in records:
            files.add(f"{hash_of(key)} {json.dumps(record)}".encode())
        files.close()
        write_summary(temporary, counts, memory=files.memory)


def partition_memory(parts: list[Path], partitions: int) -> list[int]:
    """The memory that each partition takes when it is read, in bytes."""
    sizes = [0] * partitions
    for part in parts:
        for index, size in read_json(part / PART_FILE)["memory"].items():
            sizes[int(index)] += size
    return sizes


def partition_files(parts: list[Path], index: int) -> list[Path]:
    return [part / str(index) for part in parts if (part / str(index)).exists()]


def groups_of(
    parts: list[Path], index: int, partitions: int, memory: int, scratch: Path, counts: Counts
) -> Iterator[list[Any]]:
    """The records of each key of one partition, in the order of the parts. At most `memory` bytes are read at once.

    scratch: a folder for narrower partitions, which is removed.
    """
    files = partition_files(parts, index)
    size = partition_memory(parts, partitions)[index]
    low, high = (-(-16 ** HASH_DIGITS * each // partitions) for each in (index, index + 1))
    yield from _groups(files, size, low, high, memory, scratch, counts)


def _groups(
    files: list[Path], size: int, low: int, high: int, memory: int, scratch: Path, counts: Counts
) -> Iterator[list[Any]]:
    if size > memory:
        count = min(2 * -(-size // memory), MAX_PARTITIONS, high - low)
        scratch.mkdir(parents=True)
        try:
            narrower = _Partitions(scratch, count, low, high)
            for line in _lines(files, counts):
                narrower.add(line)
            narrower.close()
            if len(narrower.hashes) == 1:
                counts[TOO_LARGE] += 1
                return
            for index, part_size in sorted(narrower.memory.items()):
                begin, end = (low - (low - high) * each // count for each in (index, index + 1))
                yield from _groups([scratch / str(index)], part_size, begin, end, memory,
                                   scratch / f"{index}.narrower", counts)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return
    lines = sorted(_lines(files, counts), key=lambda line: line[:HASH_DIGITS])
    for _, group in itertools.groupby(lines, key=lambda line: line[:HASH_DIGITS]):
        group = list(group)
        if sum(map(len, group)) * GROUP_OVERHEAD > memory:
            counts[TOO_LARGE] += 1
        else:
            yield [json.loads(line[HASH_DIGITS + 1:]) for line in group]


def _lines(files: list[Path], counts: Counts) -> Iterator[bytes]:
    for path in files:
        yield from split_lines(chunks_of(path), counts)
