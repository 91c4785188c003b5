"""Reading dumps: bytes from any compression or archive, in chunks, and lines and JSON objects from them.

What a file is follows from its first bytes, not from its name: gzip, bzip2 (multi-stream too), xz, zstd (windows up to
2 GiB), 7z, zip and tar, or plain. Nothing is unpacked to disk, and memory does not grow with the size of a file,
however far it expands. A file that ends too early yields what is whole, and counts.notes says so; one that is damaged
raises ValueError.
"""

import bz2
import codecs
import contextlib
import errno
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.mine.bz2_streams import parallel_chunks
from data.mine.source import Counts

CHUNK_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 25  # longer lines are left out and counted
BAD_LINES_OF_A_WRONG_FILE = 1000  # this many bad lines before the first good one: the file is another kind
_BYTE_ORDER_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_ZSTD_FRAMES = (b"\x28\xb5\x2f\xfd", *(bytes([byte]) + b"\x2a\x4d\x18" for byte in range(0x50, 0x60)))
_ZSTD_PIECE = 256  # bytes given to zstd at once: they expand to 16 MB at most


class Progress:
    """Counts the bytes read of all files; a file that is read twice, between two calls of start(), counts once."""

    def __init__(self, add: Callable[[int], None]):
        self._add, self._reached = add, {}

    def start(self) -> None:
        self._reached.clear()

    def at(self, path: Path, offset: int) -> None:
        if (more := offset - self._reached.get(path, 0)) > 0:
            self._reached[path] = offset
            self._add(more)


progress = Progress(lambda _: None)  # of this process; data/mine/mine.py sets another
helpers = 1  # threads or processes among which this process may divide the work on one unit, itself included


class CountedFile(io.RawIOBase):
    """A file whose reads count as progress."""

    def __init__(self, path: Path):
        self._path, self._file = path, open(path, "rb", buffering=0)  # noqa: SIM115, close() closes it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        progress.at(self._path, self._file.tell())
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def damage_named(path: Path, counts: Counts) -> Iterator[None]:
    """Notes that a file ended too early, and turns the errors of damaged files into a ValueError that names it."""
    try:
        yield
    except EOFError as error:
        counts.notes.append(f"{path} is cut short, what is whole was mined: {error}")
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
            NotImplementedError) as error:  # the last one is of zip files with another compression
        raise ValueError(f"{path} is damaged: {error}") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a damaged zip file can point to places before its beginning
            raise
        raise ValueError(f"{path} is damaged: {error}") from error


def members(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, its bytes in chunks) of each wanted file of an archive, in its order; else of the one file, decompressed.

    A member must be read, as far as it is wanted, before the next one is asked for. Use it inside damage_named.
    """
    with io.BufferedReader(CountedFile(path), CHUNK_BYTES) as raw:
        start = raw.peek(8)
        if start.startswith(b"7z\xbc\xaf\x27\x1c"):
            from data.mine.seven_zip import seven_zip_members  # only 7z files need py7zr
            yield from seven_zip_members(path, raw, wanted)
        elif start.startswith(b"PK\x03\x04"):
            yield from _zip_members(path, raw, wanted)
        else:
            chunks = decompressed(path, raw, start)
            head = b""
            while len(head) < tarfile.BLOCKSIZE and (chunk := next(chunks, b"")):
                head += chunk
            chunks = _with_head(head, chunks)
            if head[257:262] == b"ustar":
                yield from _tar_members(chunks, wanted)
            elif wanted(name := plain_name(path)):
                yield name, chunks


def chunks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file that is no archive, or of the first file of an archive. Use it inside damage_named."""
    for _, chunks in members(path):
        yield from chunks
        return


def plain_name(path: Path) -> str:
    """The name of a file without the suffix of its compression."""
    return path.stem if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst") else path.name


def _with_head(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def decompressed(path: Path, raw: io.BufferedReader, start: bytes) -> Iterator[bytes]:
    """The bytes in chunks of a file that begins with `start`; `path` names it in errors. Use it inside damage_named."""
    if start.startswith(_ZSTD_FRAMES):
        yield from _zstd_chunks(path, raw)
        return
    stream: Any = raw
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=raw)
    elif start.startswith(b"BZh") and helpers > 1:
        yield from parallel_chunks(raw, helpers)
        return
    elif start.startswith(b"BZh"):
        stream = bz2.BZ2File(raw)
    elif start.startswith(b"\xfd7zXZ\x00"):
        stream = lzma.LZMAFile(raw)  # noqa: SIM115, it only wraps
    while chunk := stream.read1(CHUNK_BYTES):  # read() would lose what comes before an error
        yield chunk


def import_zstandard() -> Any:
    """The module; ValueError naming the extra if it is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise ValueError('zstandard is not installed: pip install -e ".[mine]"') from error
    return zstandard


def _zstd_chunks(path: Path, raw: io.BufferedReader) -> Iterator[bytes]:
    zstandard = import_zstandard()
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame, begun = decompressor.decompressobj(), False
    try:
        while piece := raw.read(_ZSTD_PIECE):
            while piece:
                if chunk := frame.decompress(piece):
                    yield chunk
                begun, piece = not frame.eof, frame.unused_data
                if frame.eof:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if begun:
        raise EOFError("the last zstd frame has no end")


def _zip_members(path: Path, raw: io.BufferedReader, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            if info.is_dir() or not wanted(info.filename):
                continue
            if info.flag_bits & 1:
                raise ValueError(f"{path}: {info.filename} is encrypted: unpack it with its password first")
            with archive.open(info) as stream:
                yield info.filename, iter(lambda stream=stream: stream.read(CHUNK_BYTES), b"")


def _tar_members(chunks: Iterator[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    try:
        with tarfile.open(fileobj=as_file(chunks), mode="r|") as archive:
            for info in archive:
                if info.isfile() and wanted(info.name):
                    stream = archive.extractfile(info)
                    yield info.name, iter(lambda stream=stream: stream.read(CHUNK_BYTES), b"")
    except tarfile.ReadError as error:
        raise EOFError(str(error)) from error


class _ChunkFile(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def as_file(chunks: Iterator[bytes]) -> io.BufferedReader:
    """A binary file to read from, for libraries that want one: csv (inside io.TextIOWrapper), json, tarfile."""
    return io.BufferedReader(_ChunkFile(chunks), CHUNK_BYTES)


def in_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text in UTF-8 and without a byte order mark, whatever encoding its mark says; without one, unchanged."""
    head = b""
    while len(head) < 4 and (chunk := next(chunks, b"")):
        head += chunk
    mark, encoding = next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), (b"", "utf-8"))
    chunks = _with_head(head[len(mark):], chunks)
    if encoding == "utf-8":
        return chunks
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    return (decoder.decode(chunk).encode("utf-8", "replace") for chunk in chunks)


def split_lines(chunks: Iterable[bytes], counts: Counts, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a text in chunks, without their ends; longer lines than max_bytes are left out and counted."""
    pending, too_long = bytearray(), False
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for piece in whole:
            if too_long or len(pending) + len(piece) > max_bytes:
                counts[f"line longer than {max_bytes:,} bytes"] += 1
            else:
                yield bytes(pending) + piece if pending else piece
            pending.clear()
            too_long = False
        if not too_long:
            pending += last
            if len(pending) > max_bytes:
                pending.clear()
                too_long = True
    if too_long:
        counts[f"line longer than {max_bytes:,} bytes"] += 1
    elif pending:
        yield bytes(pending)


def lines_of(path: Path, counts: Counts) -> Iterator[bytes]:
    """The lines of a file, or of every file of an archive, in UTF-8 and without their ends."""
    with damage_named(path, counts):
        for _, chunks in members(path):
            yield from split_lines(in_utf8(chunks), counts)


def objects_of(path: Path, counts: Counts, keys: tuple[str, ...] = ()) -> Iterator[dict]:
    """The JSON objects of a file with one a line, if they have all of `keys`; other lines are counted.

    Raises ValueError naming the file, and what its first bad line is, if no line is such an object.
    """
    yield from json_objects(lines_of(path, counts), path, counts, keys)


def json_objects(
    lines: Iterable[bytes], path: Path | str, counts: Counts, keys: tuple[str, ...] = ()
) -> Iterator[dict]:
    """objects_of lines; `path` names their file in errors."""
    found, bad, first = 0, 0, ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value, reason = _object(line, keys)
        if value is not None:
            found += 1
            yield value
            continue
        counts[reason] += 1
        bad, first = bad + 1, first or f"line {number} is {reason}"
        if not found and bad == BAD_LINES_OF_A_WRONG_FILE:
            break
    if bad and not found:
        raise ValueError(f"{path}: {first}, and no line is a JSON object"
                         + (f" with the keys {', '.join(keys)}" if keys else "") + ": it is not a file of this source")


def _object(line: bytes, keys: tuple[str, ...]) -> tuple[dict | None, str]:
    """(the object, "") or (None, the reason why it is none)."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None, "not JSON"
    if not isinstance(value, dict):
        return None, "not a JSON object"
    missing = [key for key in keys if key not in value]
    return (None, f"a JSON object without {', '.join(missing)}") if missing else (value, "")
