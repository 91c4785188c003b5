"""bzip2 files of many streams, such as Wikipedia's multistream dumps: streams are decompressed by several threads.

A stream that is not empty begins with ten known bytes. Their chance to stand anywhere else is 2^-80 per place. bz2 lets
other threads run while it works. Memory is bounded: a piece of more than LONGEST_PIECE bytes without the begin of a
stream is read by one thread from there on, and what a stream expands to is taken in chunks.
"""

import bz2
import collections
import concurrent.futures
import itertools
import re
from collections.abc import Iterator
from typing import IO, Any

LONGEST_PIECE = 1 << 23  # compressed bytes
FIRST_CHUNK = 1 << 25  # bytes of a stream that a thread decompresses ahead
CHUNK_BYTES = 1 << 18
_BEGIN = re.compile(rb"BZh[1-9]1AY&SY", re.DOTALL)
_BEGIN_BYTES = 10


def parallel_chunks(raw: IO[bytes], threads: int) -> Iterator[bytes]:
    """The decompressed bytes of a bzip2 file, in chunks. Raises EOFError and OSError as bz2 does."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        under_way: collections.deque = collections.deque()
        for piece, is_whole in _pieces(raw):
            if is_whole:
                under_way.append(pool.submit(_decompress, piece))
            while under_way and (len(under_way) > 2 * threads or not is_whole):
                yield from _rest(*under_way.popleft().result())
            if not is_whole:
                yield from _sequential(piece, raw)
        while under_way:
            yield from _rest(*under_way.popleft().result())


def _pieces(raw: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """(bytes from one begin of a stream to the next one or the end, True); the first part of a longer one, False."""
    pending = bytearray()
    while block := raw.read(1 << 20):
        searched = max(1, len(pending) - _BEGIN_BYTES)
        pending += block
        begins = [0, *(match.start() for match in _BEGIN.finditer(pending, searched))]
        for begin, end in itertools.pairwise(begins):
            yield bytes(pending[begin:end]), True
        del pending[: begins[-1]]
        if len(pending) > LONGEST_PIECE:
            yield bytes(pending), False
            return
    if pending:
        yield bytes(pending), True


def _decompress(piece: bytes) -> tuple[bytes, Any]:
    decompressor = bz2.BZ2Decompressor()
    return decompressor.decompress(piece, FIRST_CHUNK), decompressor


def _rest(chunk: bytes, decompressor: Any) -> Iterator[bytes]:
    """The chunk and what is left of its stream. Behind it in a piece are empty streams at most."""
    yield chunk
    while not decompressor.eof:
        if decompressor.needs_input:
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        yield decompressor.decompress(b"", CHUNK_BYTES)


def _sequential(piece: bytes, raw: IO[bytes]) -> Iterator[bytes]:
    """The streams that begin with a piece and go on in the file."""
    decompressor, given = bz2.BZ2Decompressor(), piece
    while True:
        if decompressor.eof:
            given = decompressor.unused_data or raw.read(CHUNK_BYTES)
            if not given.startswith(b"BZ"):
                return
            decompressor = bz2.BZ2Decompressor()
        elif decompressor.needs_input and not given and not (given := raw.read(CHUNK_BYTES)):
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        chunk, given = decompressor.decompress(given, CHUNK_BYTES), b""
        if chunk:
            yield chunk
