"""One training file as blocks of whole lines, CSV records or rows (data/formats.py says how they are parsed)."""

import codecs
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from data.columns import Columns
from data.compression import decompressed, named_damage
from data.examples import LONGEST_LINE, printable
from data.formats import OVERLONG, Layout, csv_records, known_suffixes, syntax_of
from data.shards import checksum

BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MANY_NULS = 1 / 8  # of the bytes of a first block: it is UTF-16 without a byte-order mark, or no text


class SourceFile:
    """One training file as blocks of whole lines; counts the bytes read and their CRC-32."""

    def __init__(
        self,
        path: Path,
        tsv_header: bool = False,
        tsv: Literal["texts", "parallel"] = "texts",
        columns: Columns | None = None,
    ):
        self.path = path
        syntax = syntax_of(path)
        if syntax is None:
            raise ValueError(f"{path}: no training format; its name must end in {known_suffixes()}")
        if syntax == "tsv" and tsv == "parallel" and columns is None:
            syntax = "parallel"
        self._named = columns if syntax != "text" else None
        self._is_table = syntax in ("tsv", "csv", "parallel")
        self._by_name = self._is_table and self._named is not None and not self._named.are_numbers
        self._has_header = self._is_table and (tsv_header or self._by_name)
        self.syntax = syntax
        self.columns: list[str] = []  # the names in the header, once it has been read
        self.bytes_read = 0
        self.crc32 = 0

    @property
    def layout(self) -> Layout:
        """How its lines are read; the header is known once the first block has been read."""
        return Layout(self.syntax, self._named, tuple(self.columns) if self._by_name else ())

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
        """(number of the first line, whole lines of about block_bytes bytes); the first line of a file is 1.

        Memory is bounded: a line of more than LONGEST_LINE bytes is not kept, and OVERLONG stands for it.

        Raises ValueError naming the file if it is empty, not UTF-8 by its first bytes, or truncated or damaged, and if
        its header lacks a column of --columns.
        """
        if self.syntax == "parquet":
            yield from self._table_blocks(block_bytes)
            return
        with open(self.path, "rb", buffering=0) as raw, named_damage(self.path):
            counted = io.BufferedReader(_CountedReads(raw, self), buffer_size=1 << 17)
            stream = decompressed(counted, self.path)
            start = self._start_of(stream, block_bytes)
            blocks = _csv_blocks if self.syntax == "csv" else _line_blocks
            first = 1
            for number, block in blocks(stream, start, block_bytes):
                if number == 1 and self._has_header:
                    first, block = self._without_header(block)
                yield (first if number == 1 else number), block

    def _start_of(self, stream: BinaryIO, block_bytes: int) -> bytes:
        """The first bytes of the file, without a byte-order mark."""
        start = stream.read(max(4, block_bytes))
        if not start:
            raise ValueError(f"{self.path}: the file is empty")
        is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if is_utf16 or start.count(0) > MANY_NULS * len(start):
            found = "is UTF-16, by its byte-order mark" if is_utf16 else "is UTF-16 or no text, by its many zero bytes"
            raise ValueError(f"{self.path}: the file {found}: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        return start.removeprefix(BYTE_ORDER_MARK)

    def _without_header(self, block: bytes) -> tuple[int, bytes]:
        """(number of the first line after the header, the rest of the first block)."""
        if self.syntax == "csv":
            lines, cells = next(csv_records(io.BytesIO(block)))
            if cells is None:
                raise ValueError(f"{self.path}: its first line is no CSV header: a quote is not closed, or not doubled")
        else:
            lines = [block[: block.find(b"\n") + 1] or block]
            cells = lines[0].decode(errors="replace").rstrip("\r\n").split("\t")
        self.columns = [cell.encode(errors="replace").decode() for cell in cells]
        if self._by_name:
            self._check_header()
        return 1 + len(lines), block[sum(map(len, lines)):]

    def _check_header(self) -> None:
        for name in self._named.names:
            if (count := self.columns.count(name)) != 1:
                found = "has no column" if not count else f"has {count} columns"
                columns = ", ".join(map(printable, self.columns[:50]))
                raise ValueError(f'{self.path}: its first line {found} "{name}": {columns}')

    def _table_blocks(self, block_bytes: int) -> Iterator[tuple[int, bytes]]:
        from data.tables import open_table, table_blocks  # pyarrow is an extra

        table, size = open_table(self.path, self._named), self.path.stat().st_size
        self.columns = list(table.names)
        for number, block, share in table_blocks(self.path, table, block_bytes):
            self.bytes_read = int(share * size)
            yield number, block
        self.bytes_read, self.crc32 = size, int(checksum(self.path), 16)


class _CountedReads(io.RawIOBase):
    """The raw reads of a file, counted for progress and check-summed for resuming."""

    def __init__(self, raw: io.RawIOBase, source: SourceFile):
        self._raw, self._source = raw, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._raw.readinto(buffer)
        self._source.bytes_read += count
        self._source.crc32 = zlib.crc32(memoryview(buffer)[:count], self._source.crc32)
        return count


def _line_blocks(stream: BinaryIO, start: bytes, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, lines) of `start` and what follows it in the stream."""
    number, block = 1, start
    while block:
        if not block.endswith(b"\n"):
            last = block.rfind(b"\n") + 1
            block = block[:last] + _line_of(stream, block[last:])
        yield number, block
        number += block.count(b"\n") + (not block.endswith(b"\n"))
        block = stream.read(block_bytes)


def _csv_blocks(stream: BinaryIO, start: bytes, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, CSV records) of `start` and what follows it in the stream."""
    lines = (line for _, block in _line_blocks(stream, start, block_bytes) for line in io.BytesIO(block))
    number, block, size = 1, [], 0
    for record, _ in csv_records(lines):
        block += record
        size += sum(map(len, record))
        if size >= block_bytes:
            yield number, b"".join(block)
            number, block, size = number + len(block), [], 0
    if block:
        yield number, b"".join(block)


def _line_of(stream: BinaryIO, begun: bytes) -> bytes:
    """The whole line that begins with `begun`, or OVERLONG and its line feed if it is too long."""
    line = begun + stream.readline(LONGEST_LINE + 1 - len(begun))
    if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
        return line
    while rest := stream.readline(BLOCK_BYTES):
        if rest.endswith(b"\n"):
            break
    return OVERLONG + b"\n"
