"""Compressed files as streams of bytes: .gz, .bz2, .xz and .zst by the file's name, in any case.

Memory stays bounded whatever a file decompresses to. A file of several members, frames or streams, as `cat` makes one,
is read to its end.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
ZSTD_FEED_BYTES = 1 << 10  # a block of 4 bytes can grow to 128 KiB, so that one feed gives 32 MiB at most
ZSTD_LONGEST_WINDOW = 1 << 31  # bytes: what `zstd --long=31` writes
BUFFER_BYTES = 1 << 17


def compression_of(path: str | os.PathLike) -> str:
    """".gz", ".bz2", ".xz" or ".zst" by the file's name; "" if it is not compressed."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in NAMES else ""


def decompressed(raw: BinaryIO, path: str | os.PathLike) -> BinaryIO:
    """The bytes of `raw` as a stream, decompressed if the name of `path` says that they are compressed.

    Raises ValueError if a .zst file is named and zstandard is not installed. Reads raise what `named_damage` names.
    """
    match compression_of(path):
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".xz":
            return lzma.LZMAFile(raw)
        case ".zst":
            return io.BufferedReader(_ZstdReads(raw, path), BUFFER_BYTES)
    return raw


@contextlib.contextmanager
def named_damage(path: Path) -> Iterator[None]:
    """Turns the errors of a truncated or damaged compressed file into a ValueError that names it."""
    name = NAMES.get(compression_of(path), "")
    try:
        yield
    except EOFError as error:
        raise ValueError(f"{path}: truncated {name} file: {error}") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: damaged {name} file: {error}") from error
    except OSError as error:
        if error.errno is not None:  # bz2's and zstd's errors have no number
            raise
        raise ValueError(f"{path}: damaged {name} file: {error}") from error


class _ZstdReads(io.RawIOBase):
    """Decompresses frame after frame. The library's own stream reader takes a truncated file for a whole one."""

    def __init__(self, raw: BinaryIO, path: str | os.PathLike):
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{path}: .zst files need zstandard: pip install -e '.[parquet]'") from error
        self._raw, self._error = raw, zstandard.ZstdError
        self._library = zstandard.ZstdDecompressor(max_window_size=ZSTD_LONGEST_WINDOW)
        self._frame: Any = None  # None: between two frames
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            fed = self._input or self._raw.read(ZSTD_FEED_BYTES)
            self._input = b""
            if not fed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._frame = self._frame or self._library.decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(fed))
            except self._error as error:
                raise OSError(str(error)) from error
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
