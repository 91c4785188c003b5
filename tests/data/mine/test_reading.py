"""Reading dumps: every packing, cut and damaged files, bombs, long lines, encodings; a fuzz over all packings."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
import zipfile

import py7zr
import pytest
import zstandard

from data.mine import reading
from data.mine.reading import chunks_of, damage_named, lines_of, members, objects_of, split_lines
from data.mine.source import Counts

LINES = [b'{"line": %d}' % number for number in range(60_000)]
TEXT = b"\n".join(LINES) + b"\n"
PACKINGS = {
    "plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
}


def archive_of(kind, files):
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif kind == "7z":
        with py7zr.SevenZipFile(target, "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 1}]) as archive:
            for name, data in files.items():
                archive.writestr(data, name)
    else:
        with tarfile.open(fileobj=target, mode=f"w:{kind.removeprefix('tar').removeprefix('.')}") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def read(path):
    counts = Counts()
    with damage_named(path, counts):
        return b"".join(chunks_of(path)), counts
    return None, counts


@pytest.mark.parametrize("packing", PACKINGS)
def test_packings(tmp_path, packing):
    """Whatever the name says; several streams one after the other are one file."""
    path = tmp_path / "dump.bin"
    path.write_bytes(PACKINGS[packing](TEXT[:1000]) + PACKINGS[packing](TEXT[1000:]))
    assert read(path) == (TEXT, {})
    assert list(lines_of(path, Counts())) == LINES


@pytest.mark.parametrize("packing", PACKINGS)
def test_files_that_are_cut_short(tmp_path, packing):
    path = tmp_path / "dump"
    whole = PACKINGS[packing](TEXT)
    path.write_bytes(whole[:len(whole) // 2])
    counts = Counts()
    lines = list(lines_of(path, counts))
    assert lines == LINES[:len(lines)] if packing != "plain" else lines[:-1] == LINES[:len(lines) - 1]
    assert packing == "bz2" or len(lines) > 1000
    assert len(counts.notes) == (packing != "plain")
    assert all(f"{path} is cut short, what is whole was mined" in note for note in counts.notes)


@pytest.mark.parametrize("kind", ["zip", "7z", "tar", "tar.gz", "tar.xz"])
def test_archives(tmp_path, kind):
    files = {"a/one.txt": TEXT, "b/two.txt": b"two", "c/three.txt": TEXT[:99]}
    path = tmp_path / "archive"
    path.write_bytes(archive_of(kind, files))
    assert {name: b"".join(chunks) for name, chunks in members(path)} == files
    assert [(name, next(chunks)[:3]) for name, chunks in members(path, lambda name: "two" not in name)] == [
        ("a/one.txt", TEXT[:3]), ("c/three.txt", TEXT[:3])]  # what is not read is passed over
    assert list(members(path, lambda name: False)) == []
    assert read(path)[0] == TEXT
    assert list(lines_of(path, Counts())) == [*LINES, b"two", *TEXT[:99].split(b"\n")]


def test_memory_is_bounded_for_bombs(tmp_path):
    """60 MB of one byte, packed by each: less than half of that in memory."""
    bomb = bytes(60_000_000)
    for packing, pack in {**PACKINGS, "7z": lambda data: archive_of("7z", {"a": data})}.items():
        if packing == "plain":
            continue
        (tmp_path / "bomb").write_bytes(pack(bomb))
        tracemalloc.start()
        assert sum(map(len, chunks_of(tmp_path / "bomb"))) == len(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6, packing


def test_long_lines_are_left_out():
    chunks = [b"one\ntw", b"o\n", b"x" * 70, b"y" * 70, b"\nthree", b"\n\nfour" + b"z" * 200]
    counts = Counts()
    assert list(split_lines(iter(chunks), counts, max_bytes=100)) == [b"one", b"two", b"three", b""]
    assert counts == {"line longer than 100 bytes": 2}


def test_a_line_of_100_mb_and_a_million_empty_lines(tmp_path):
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "' + b"x" * 100_000_000 + b'"}\n' + b"\n" * 1_000_000 + b'{"a": 1}\n', 1))
    counts = Counts()
    assert list(objects_of(path, counts)) == [{"a": 1}]
    assert counts == {f"line longer than {reading.MAX_LINE_BYTES:,} bytes": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path, encoding):
    text = '{"a": "ü𝄞"}\n{"a": "\\ud800"}\n'
    (tmp_path / "a").write_bytes(text.encode(encoding))
    assert [value["a"] for value in objects_of(tmp_path / "a", Counts(), ("a",))] == ["ü𝄞", "\ud800"]


def test_bad_lines_are_counted(tmp_path):
    deep, long = "[" * 100_000, '{"a": ' + "1" * 10_000 + "}"
    (tmp_path / "a").write_bytes(b'{"a": 1}\n\xff\xfe\n{"b": 1}\n[1]\n{"a"\n' + deep.encode() + b"\n" + long.encode())
    counts = Counts()
    assert list(objects_of(tmp_path / "a", counts, ("a",))) == [{"a": 1}]
    assert counts == {"not JSON": 4, "a JSON object without a": 1, "not a JSON object": 1}
    (tmp_path / "b").write_bytes(b"x\n" * 5000)
    with pytest.raises(ValueError, match="b: line 1 is not JSON, and no line is a JSON object"):
        list(objects_of(tmp_path / "b", counts))
    assert counts["not JSON"] == 4 + reading.BAD_LINES_OF_A_WRONG_FILE


@pytest.mark.parametrize("kind", [*PACKINGS, "zip", "7z", "tar", "tar.gz"])
def test_damaged_files_give_errors_of_one_kind(tmp_path, kind):
    """Flipped bits and cuts: a ValueError that names the file, a note, or other bytes; never another error."""
    rng = random.Random(kind)
    text = TEXT[:3000]
    whole = PACKINGS[kind](text) if kind in PACKINGS else archive_of(kind, {"a.txt": text, "b.txt": text})
    path = tmp_path / "dump"
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[:rng.randrange(len(data))] if rng.random() < 0.3 else data)
        counts = Counts()
        try:
            with damage_named(path, counts):
                for _, chunks in members(path):
                    for _ in chunks:
                        pass
        except ValueError as error:
            assert str(path) in str(error)
