"""Records round-trip, the reader finds every example in any order, and damage is found and named."""

import hashlib
import random

import numpy as np
import pytest

from data.files import write_json
from data.shards import (
    FORMAT_VERSION,
    Example,
    Text,
    checksum,
    decode_record,
    encode_record,
    open_dataset,
    open_writer,
    read_manifest,
    require_same_tokenizer,
    shard_name,
    text_id,
    token_dtype,
)


def random_example(generator: np.random.Generator, kind: str, dtype: np.dtype) -> Example:
    count = {"pair": 2, "triplet": 3}.get(kind) or int(generator.integers(2, 9))
    num_positives = {"set": count - 1, "lists": int(generator.integers(1, count))}.get(kind, 1)
    texts = []
    for _ in range(count):
        tokens = generator.integers(0, np.iinfo(dtype).max, generator.integers(0, 40), dtype, endpoint=True)
        full_length = len(tokens) + int(generator.integers(0, 1 << 20))
        texts.append(Text(tokens, full_length, int(generator.integers(1, 1 << 64, dtype=np.uint64))))
    scores = generator.normal(size=count - 1).astype(np.float32) if kind == "lists" else None
    return Example(kind, tuple(texts), num_positives, scores)


def assert_equal(found: Example, expected: Example) -> None:
    assert (found.kind, found.num_positives) == (expected.kind, expected.num_positives)
    assert len(found.texts) == len(expected.texts)
    for found_text, expected_text in zip(found.texts, expected.texts):
        assert found_text.tokens.dtype == expected_text.tokens.dtype
        np.testing.assert_array_equal(found_text.tokens, expected_text.tokens)
        assert found_text[1:] == expected_text[1:]
    if expected.scores is None:
        assert found.scores is None
    else:
        np.testing.assert_array_equal(found.scores, expected.scores)


def write_dataset(data_dir, name: str, examples: list[Example], per_shard: int, tokenizer: str = "f" * 64) -> None:
    """A prepared folder of one dataset, written by hand."""
    folder = data_dir / name
    folder.mkdir(parents=True)
    starts, shards = range(0, len(examples), per_shard), []
    for index, start in enumerate(starts):
        path = folder / shard_name(index, len(starts))
        writer = open_writer(path)
        for example in examples[start : start + per_shard]:
            writer.write(encode_record(example))
        writer.close()
        records = len(examples[start : start + per_shard])
        shards.append({"file": path.name, "records": records, "bytes": path.stat().st_size, "crc32": checksum(path)})
    manifest = {"name": name, "kind": "lists", "has_negatives": True, "shards": shards, "options": {"prompts": {}}}
    write_json(folder / "manifest.json", manifest)
    top = {
        "format": FORMAT_VERSION,
        "tokenizer": {"fingerprint": tokenizer},
        "datasets": [{"name": name, "shards": len(shards)}],
        "prompts": {},
    }
    write_json(data_dir / "manifest.json", top)


@pytest.fixture
def dataset(tmp_path):
    generator = np.random.default_rng(3)
    examples = [random_example(generator, "lists", np.dtype("<u2")) for _ in range(100)]
    write_dataset(tmp_path, "a/b.jsonl.gz", examples, per_shard=30)
    return tmp_path, examples


@pytest.mark.parametrize("kind", ["pair", "triplet", "set", "lists"])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_record_round_trip(kind, dtype):
    generator = np.random.default_rng(5)
    for _ in range(50):
        example = random_example(generator, kind, np.dtype(dtype))
        assert_equal(decode_record(encode_record(example)), example)


def test_record_bytes_are_as_documented():
    texts = (Text(np.array([1, 258], "<u2"), 2, 7), Text(np.array([3], "<u2"), 900, 1 << 63))
    expected = (
        bytes([1, 0, 2, 0]) + (2).to_bytes(4, "little") + (1).to_bytes(4, "little")
        + (7).to_bytes(8, "little") + (1 << 63).to_bytes(8, "little")
        + (2).to_bytes(4, "little") + (900).to_bytes(4, "little")
        + (2).to_bytes(2, "little") + (1).to_bytes(2, "little")
        + bytes([1, 0, 2, 1, 3, 0])
    )
    assert encode_record(Example("pair", texts, 1)) == expected
    with pytest.raises(ValueError, match="format 9"):
        decode_record(b"\x09" + expected[1:])


def test_query_positives_and_negatives():
    texts = tuple(Text(np.zeros(1, "<u2"), 1, i) for i in range(1, 6))
    example = Example("lists", texts, 3)
    assert example.query == texts[0] and example.positives == texts[1:4] and example.negatives == texts[4:]


def test_token_dtype_and_text_id():
    assert token_dtype(65536).itemsize == 2 and token_dtype(65537).itemsize == 4
    assert text_id(" a text\n") == text_id("a text") != text_id("A text")
    digest = hashlib.blake2b("é".encode(), digest_size=8).digest()
    assert text_id("é") == int.from_bytes(digest, "little")


def test_reader_finds_every_example_in_any_order(dataset):
    data_dir, examples = dataset
    reader = open_dataset(data_dir, "a/b.jsonl.gz")
    assert len(reader) == 100 and reader.kind == "lists" and reader.has_negatives
    indices = random.Random(1).choices(range(100), k=257)  # with repeats, over all four shards
    for index, found in zip(indices, reader.read(indices)):
        assert_equal(found, examples[index])
    assert reader.read(np.array([99], np.int64))[0].texts[0].text_id == examples[99].texts[0].text_id
    assert reader.read([]) == []
    for index in (-1, 100):
        with pytest.raises(IndexError, match=f"example {index} of a/b.jsonl.gz, which has 100"):
            reader.read([0, index])


def test_unknown_dataset_and_unfinished_folder(dataset, tmp_path):
    data_dir, _ = dataset
    with pytest.raises(ValueError, match=r"unknown dataset 'c\.jsonl'.*a/b\.jsonl\.gz"):
        open_dataset(data_dir, "c.jsonl")
    (tmp_path / "file").write_text("")
    for name, reason in (("a", "has no manifest"), ("gone", "does not exist"), ("file", "is a file")):
        with pytest.raises(ValueError, match=rf"--data_dir=\S+/{name} {reason}.*python main.py prepare --source_dir="):
            read_manifest(tmp_path / name)


def test_another_tokenizer(dataset):
    data_dir, _ = dataset
    require_same_tokenizer(data_dir, "f" * 64)
    with pytest.raises(ValueError, match=f"another tokenizer.*{'f' * 64}.*{'e' * 64}"):
        require_same_tokenizer(data_dir, "e" * 64)


def test_truncated_missing_and_longer_shards_are_named(dataset):
    data_dir, _ = dataset
    path = data_dir / "a" / "b.jsonl.gz" / "00001-of-00004.arrayrecord"
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        for verify in ("checksum", "size"):
            with pytest.raises(ValueError, match=rf"00001-of-00004.*has {len(content)} bytes, .* {len(whole)}\b"):
                open_dataset(data_dir, "a/b.jsonl.gz", verify)
    path.unlink()
    with pytest.raises(ValueError, match=r"00001-of-00004.arrayrecord is missing"):
        open_dataset(data_dir, "a/b.jsonl.gz")


def test_flipped_bit_is_found(dataset):
    """The checksum finds any flipped bit on opening; without it no flipped bit ever gives another example."""
    data_dir, examples = dataset
    path = data_dir / "a" / "b.jsonl.gz" / "00001-of-00004.arrayrecord"
    whole = path.read_bytes()
    found_on_reading = 0
    generator = random.Random(11)
    used = max(index for index, byte in enumerate(whole[:60_000]) if byte)  # the records lie at the front
    places = [generator.randrange(used) for _ in range(20)] + [generator.randrange(len(whole)) for _ in range(20)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"00001-of-00004.arrayrecord has CRC-32 "):
            open_dataset(data_dir, "a/b.jsonl.gz")
        try:
            read = open_dataset(data_dir, "a/b.jsonl.gz", verify="size").read(range(100))
        except ValueError as error:
            assert "00001-of-00004.arrayrecord" in str(error)
            found_on_reading += 1
        else:
            for found, expected in zip(read, examples):
                assert_equal(found, expected)
    assert found_on_reading >= 15
