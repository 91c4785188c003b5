"""7z archives as streams: py7zr decompresses in a thread, and its bytes come out of a short queue."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import py7zr
    from py7zr.io import Py7zIO, WriterFactory
except ImportError as error:
    raise ValueError('7z files need py7zr: pip install -e ".[mine]"') from error

PIECE_BYTES, READ_BYTES = 1 << 22, 1 << 16
QUEUED_PIECES = 2
# py7zr would decompress into a quarter of the free memory at once; and it reads a block for each piece that it writes,
# whether it has used up the last block or not, so with its own size of blocks it ends up holding the packed file.
py7zr.py7zr.get_memory_limit = lambda: PIECE_BYTES
py7zr.compressor.get_default_blocksize = lambda: READ_BYTES


class _Closed(Exception):
    """Ends the thread when nobody reads any more."""


class _Pipe(WriterFactory):
    """Puts (name, bytes), and (name, None) at the end of each member, into a queue."""

    def __init__(self):
        self.queue: queue.Queue = queue.Queue(QUEUED_PIECES)
        self.closed = threading.Event()

    def create(self, filename: str) -> Py7zIO:
        return _Member(self, filename)

    def put(self, item: Any) -> None:
        while not self.closed.is_set():
            try:
                return self.queue.put(item, timeout=0.2)
            except queue.Full:
                continue
        raise _Closed


class _Member(Py7zIO):
    def __init__(self, pipe: _Pipe, name: str):
        self._pipe, self._name, self._size = pipe, name, 0

    def write(self, s: bytes | bytearray) -> int:
        self._size += len(s)
        self._pipe.put((self._name, bytes(s)))
        return len(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self._pipe.put((self._name, None))


def seven_zip_members(
    path: Path, raw: IO[bytes], wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, its bytes in chunks) of each wanted member; ValueError if it is damaged, cut short or encrypted."""
    try:
        archive = py7zr.SevenZipFile(raw)
        if archive.needs_password():
            raise ValueError(f"{path} is encrypted: unpack it with its password first")
        names = [info.filename for info in archive.list() if info.uncompressed and wanted(info.filename)]
    except ValueError:
        raise
    except Exception as error:  # a damaged header makes py7zr fail in many ways
        if isinstance(error, py7zr.PasswordRequired):
            raise ValueError(f"{path} is encrypted: unpack it with its password first") from error
        raise ValueError(f"{path} is damaged or cut short: {type(error).__name__}: {error}") from error
    if not names:
        return
    pipe = _Pipe()
    thread = threading.Thread(target=_extract, args=(archive, names, pipe), daemon=True)
    thread.start()
    try:
        for _ in names:
            name, piece = _next(path, pipe)
            chunks = _chunks(path, pipe, piece)
            yield name, chunks
            for _ in chunks:  # what the reader has left
                pass
    finally:
        pipe.closed.set()
        thread.join()


def _extract(archive: Any, names: list[str], pipe: _Pipe) -> None:
    try:
        archive.extract(targets=names, factory=pipe)
    except _Closed:
        pass
    except BaseException as error:  # it is raised where the bytes are read
        with contextlib.suppress(_Closed):
            pipe.put(("", error))


def _next(path: Path, pipe: _Pipe) -> tuple[str, bytes | None]:
    name, piece = pipe.queue.get()
    if isinstance(piece, BaseException):
        raise ValueError(f"{path} is damaged: {type(piece).__name__}: {piece}") from piece
    return name, piece


def _chunks(path: Path, pipe: _Pipe, piece: bytes | None) -> Iterator[bytes]:
    while piece is not None:
        yield piece
        _, piece = _next(path, pipe)
