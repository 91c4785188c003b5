"""Compressed files, wrong encodings, long lines, bombs: read in bounded memory, or refused by name."""

import bz2
import gzip
import io
import json
import lzma
import sys
import zlib

import pytest
import zstandard

from data.compression import decompressed
from data.examples import LONGEST_LINE, TOO_LONG, BadLine
from data.source_file import SourceFile
from tests.data.test_prepare import PAIRS, run_prepare, write_lines, write_tokenizer
from tests.texts import read_examples

COMPRESS = {".gz": gzip.compress, ".BZ2": bz2.compress, ".xz": lzma.compress,
            ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
NAMES = {".gz": "gzip", ".BZ2": "bzip2", ".xz": "xz", ".zst": "zstd"}
LINES = [[f"query {i}", f"{i * i * 7919 % 10007} answers"] for i in range(4000)]
CONTENT = {
    "jsonl": "\n".join(map(json.dumps, LINES)), "tsv": "\n".join(map("\t".join, LINES)),
    "csv": "\n".join(map(",".join, LINES)), "txt": "\n".join(a for a, _ in LINES),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", CONTENT)
def test_every_format_in_every_compression(tmp_path, form, suffix):
    path, content = tmp_path / f"a.{form}{suffix}", CONTENT[form].encode()
    half = len(content) // 2
    path.write_bytes(COMPRESS[suffix](content[:half]) + COMPRESS[suffix](content[half:]))  # as `cat` joins two files
    expected = [(a, a) if form == "txt" else (a, b) for a, b in LINES]
    assert [example.texts for _, example in read_examples(path)] == expected
    source = SourceFile(path)
    assert sum(len(block) for _, block in source.blocks(1000)) == len(content)
    assert (source.bytes_read, source.crc32) == (path.stat().st_size, zlib.crc32(path.read_bytes()))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_truncated_and_damaged_files_are_named(tmp_path, suffix):
    path, whole = tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix](CONTENT["jsonl"].encode())
    for cut in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=rf"a\.jsonl{suffix}: truncated {NAMES[suffix]} file"):
            list(SourceFile(path).blocks(1000))
    for place in (len(whole) // 3, len(whole) // 2):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=rf"a\.jsonl{suffix}: (damaged|truncated) {NAMES[suffix]} file"):
            list(SourceFile(path).blocks(1000))
    path.write_bytes(b'["a", "b"]\n' * 100)
    with pytest.raises(ValueError, match=rf"a\.jsonl{suffix}: (damaged|truncated) {NAMES[suffix]} file"):
        list(SourceFile(path).blocks())


def test_zstd_frames_that_can_be_skipped_and_long_windows():
    compressor = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=31))
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    content = skipped + compressor.compress(b"one\n" * 1000) + skipped + COMPRESS[".zst"](b"two\n")
    assert decompressed(io.BytesIO(content), "a.zst").read() == b"one\n" * 1000 + b"two\n"


@pytest.mark.parametrize("content, reason", [
    ('["a", "b"]\n'.encode("utf-16"), "the file is UTF-16, by its byte-order mark: write it as UTF-8"),
    (b"\xfe\xff" + '["é", "b"]\n'.encode("utf-16-be"), "the file is UTF-16, by its byte-order mark"),
    ('["a", "b"]\n'.encode("utf-16-le"), "the file is UTF-16 or no text, by its many zero bytes"),
    ('["a", "b"]\n'.encode("utf-32-be"), "the file is UTF-16 or no text"),
])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt.gz"])
def test_other_encodings_are_named(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content * 9) if name.endswith(".gz") else content * 9)
    with pytest.raises(ValueError, match=f"{name}: {reason}"):
        list(SourceFile(path).blocks())


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_line_that_is_too_long_is_bad_and_not_kept(tmp_path, name):
    path = tmp_path / name
    line = {"a.txt": "good", "a.jsonl": '["a", "b"]', "a.csv": "a,b"}[name].encode() + b"\n"
    path.write_bytes(line * 3 + b"x" * (100 << 20) + b"\n" + line + b"y" * (LONGEST_LINE + 1))
    sizes = [len(block) for _, block in SourceFile(path).blocks()]
    assert sum(sizes) < 1000
    found = list(read_examples(path))
    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [number for number, each in found if isinstance(each, BadLine)] == [4, 6] and str(found[3][1]) == TOO_LONG
    path.write_bytes(line + b"z" * LONGEST_LINE + b"\n")
    assert TOO_LONG not in [str(each) for _, each in read_examples(path)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_bombs_are_read_in_bounded_memory(tmp_path, suffix, processes):
    """A gigabyte of one byte in a file of some kB: one line that is too long, beside a good one."""
    path = tmp_path / f"a.txt{suffix}"
    block = bytes(1 << 20).replace(b"\0", b"x")
    opened = {".gz": gzip.open, ".BZ2": bz2.open, ".xz": lzma.open, ".zst": zstandard.open}[suffix]
    mebibytes = 64 if suffix in (".BZ2", ".xz") else 256  # they are slow
    with opened(path, "wb") as file:
        for _ in range(mebibytes):
            file.write(block)
        file.write(b"\ngood\n")
    assert path.stat().st_size < (mebibytes << 20) // 500
    code = ("import resource, sys, pathlib\nfrom tests.texts import read_examples\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "found = [str(each) for _, each in read_examples(pathlib.Path(sys.argv[1]))]\n"
            "assert len(found) == 2 and 'longer than 16 MiB' in found[0] and 'good' in found[1], found\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)")
    done = processes.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150  # MiB


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"), ["one", "red", "cat", "two", "##s"])


def test_a_million_empty_lines(tmp_path, model):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(b"\n" * 1_100_000 + b"  \r\n" * 9)
    with pytest.raises(ValueError, match=r"a\.jsonl: no example in 0 lines: all of them are blank"):
        run_prepare((source, tmp_path / "out"), model)
    write_lines(tmp_path / "pairs", PAIRS)
    (source / "a.jsonl").write_bytes(b"\n" * 1_100_000 + (tmp_path / "pairs").read_bytes() + b"[\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1100121: not valid JSON"):
        run_prepare((source, tmp_path / "out"), model, max_bad_share=0)
    run_prepare((source, tmp_path / "out"), model)


def test_every_plane_and_half_surrogates(tmp_path):
    planes = "a" + "".join(chr(plane * 0x10000 + 0x100) for plane in range(17))
    lines = [json.dumps([planes, "b"]), json.dumps([planes, "b"], ensure_ascii=False), r'["\ud83d\ude00", "b"]',
             r'["\ude00", "b"]', r'{"texts": ["a", "b"], "\ud800": 1}', r'{"\udfff": 1}', '["a\\u0000b", "c\\u0000"]']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = [each for _, each in read_examples(tmp_path / "a.jsonl")]
    assert found[0].texts == found[1].texts == (planes, "b") and found[2].texts == ("\U0001F600", "b")
    assert str(found[3]) == "a text has half a surrogate pair"
    assert found[4].texts == ("a", "b") and found[4].ignored_keys == ("?",)
    assert 'not "?"' in str(found[5]) and found[6].texts == ("a\0b", "c\0")
