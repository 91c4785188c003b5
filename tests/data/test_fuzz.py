"""Damaged and random files: readers give examples and reasons, or an error that names the file, and nothing else.

ALLPAIRS_FUZZ_SEED draws others.
"""

import bz2
import gzip
import json
import lzma
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.columns import parse_columns
from data.examples import BadLine, RawExample
from data.hub_folder import training_files
from tests.texts import read_examples

SEED = int(os.environ.get("ALLPAIRS_FUZZ_SEED", "0"))
LINES = [json.dumps(value, ensure_ascii=value != ["é", "b"]) for value in (
    ["a", "b"], ["é", "b"], ["a", "b", "\U0001F600"], {"texts": ["a", "b"]}, {"set": ["a", "b"]},
    {"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [1.5], "neg_scores": [0, -1e9]},
    {"q": "a", "p": ["b"]},
    {"q": {"x": "y"}, "p": None, "s": 1})] + ['"q","p""x"', 'a,"b\nc",d', "a\tb\t\tc", "q\tp", "plain text", ""]
PIECES = [b'"', b",", b"\t", b"\n", b"\r\n", b"[", b"{", b'"":', b"\0", b"\xff", b"\\ud800", b"\xe2\x80\xa8",
          b"9" * 5000,
          b"[" * 2000, b"null", b"1e999", b"NaN", b"\xef\xbb\xbf"]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
            ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
COLUMNS = (None, parse_columns("query=q,positive=p,score=s", "x"), parse_columns("query=1,positive=2,negative=3", "x"))


def mutated(content: bytes, generator: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(generator.randrange(1, 8)):
        place = generator.randrange(len(content) + 1)
        match generator.randrange(4):
            case 0:
                content[place:place] = generator.choice(PIECES)
            case 1:
                del content[place:place + generator.randrange(1, 40)]
            case 2 if place < len(content):
                content[place] ^= 1 << generator.randrange(8)
            case _:
                content[place:place] = generator.randbytes(generator.randrange(1, 20))
    return bytes(content)


def check(path, **options) -> None:
    try:
        for number, found in read_examples(path, **options):
            assert number >= 1 and isinstance(found, RawExample | BadLine)
            if isinstance(found, RawExample):
                assert all(text.strip() and text.encode() for text in found.texts) and len(found.texts) >= 2
                assert 1 <= found.num_positives < len(found.texts)
                assert found.scores is None or len(found.scores) == len(found.texts) - 1
            else:
                assert str(found).isprintable() and len(str(found)) < 1000
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("form", ["jsonl", "tsv", "csv", "txt"])
def test_lines(tmp_path, form):
    for case in range(150):
        generator = random.Random(f"{SEED} {form} {case}")
        content = "\n".join(generator.choices(LINES, k=generator.randrange(1, 12))).encode()
        suffix = generator.choice(list(COMPRESS))
        packed = COMPRESS[suffix](mutated(content, generator))
        path = tmp_path / f"{case}.{form}{suffix}"
        path.write_bytes(mutated(packed, generator) if generator.random() < 0.3 else packed)
        check(path, columns=generator.choice(COLUMNS), tsv_header=generator.random() < 0.3,
              tsv="parallel" if generator.random() < 0.3 else "texts")


def test_parquet(tmp_path):
    texts = [f"text {number}" for number in range(200)]
    table = pa.table({"q": texts, "p": pa.array([[each, "x"] for each in texts]),
                      "s": pa.array(range(200), pa.float32())})
    pq.write_table(table, tmp_path / "whole.parquet", compression="zstd")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for case in range(150):
        path = tmp_path / f"{case}.parquet"
        path.write_bytes(mutated(whole, random.Random(f"{SEED} parquet {case}")))
        check(path, columns=parse_columns("query=q,positive=p,score=s" if case % 2 else "query=q,positive=p", "x"))


def test_hub_headers(tmp_path):
    header = ("---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: data/train-*\n"
              "- data_dir: x\ndataset_info: {features: [1, 2]}\n---\n")
    for case in range(150):
        path = tmp_path / "README.md"
        path.write_bytes(mutated(header.encode(), random.Random(f"{SEED} hub {case}")))
        try:
            found = training_files(path, ["data/train-1.jsonl", "x/test.csv"])
            assert found is None or set(found) <= {"data/train-1.jsonl", "x/test.csv"}
        except ValueError as error:
            assert str(path) in str(error)
