"""Tokenised ArrayRecord shards: the byte format of one example, manifests, and a reader of one dataset.

    DATA_DIR/manifest.json                      {"format", "tokenizer": {"fingerprint", "vocab_size"},
                                                "datasets": [{...}], "prompts": {"query", "document"}}
    DATA_DIR/tokenizer/                         tokenizer.json and what else the tokenizer's folder had
    DATA_DIR/<dataset name>/manifest.json       counts, kind, checksums of the source and of each shard, skipped lines
    DATA_DIR/<dataset name>/00000-of-00004.arrayrecord
    DATA_DIR/<dataset name>/teacher-<fingerprint>/   a teacher's embeddings (data/teacher_store.py)

A dataset's name is the path of its source file below --source_dir, as data_config.json writes it
("stackexchange/titles.jsonl.gz"). Shards are written once, uncompressed and with one record per chunk
(`group_size:1,uncompressed`): batched random reads give 460,000 records/s per core; zstd gives 200,000 and saves
5 %. Riegeli's chunk hashes still detect a flipped bit in the data when the record is read; a truncated file or a
damaged footer reads as an empty file without any error, which is why the size and the number of records are always
compared with the manifest.

Bytes of a record (little-endian); n = number of texts:

    0   uint8        format version, 1
    1   uint8        kind: 0 pair, 1 triplet, 2 set, 3 lists
    2   uint8        bytes of a token: 2 if the vocabulary has at most 65,536 entries, else 4
    3   uint8        1 if the example has scores, else 0
    4   uint32       n
    8   uint32       p, the number of positives
    12  uint64 [n]   text ids
        uint32 [n]   full lengths: tokens of the text before the cap of --max_tokens_per_text
        uint16 [n]   stored lengths: tokens of the text in this record
        float32[n-1] scores of the texts after the first (NaN: no score), only if byte 3 is 1
        uint16 or uint32 [sum of the stored lengths]   the tokens of all texts, one text after the other

Texts are ordered query, positives, negatives: texts[0] is the query (anchor), texts[1 : 1 + p] its positives and
texts[1 + p :] its negatives. In a set p = n - 1 and any two texts are a positive pair. Nothing is drawn here: which
positive, which negative and which two of a set are drawn by the loader from (seed, step).
"""

import bisect
import hashlib
import json
import os
import resource
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

FORMAT_VERSION = 1
KINDS = ("pair", "triplet", "set", "lists")
MAX_STORED_TOKENS = 65535  # stored lengths are uint16
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0"  # random access: no read-ahead
READER_BUFFER_BYTES = 32768
CHECKSUM_BLOCK_BYTES = 1 << 22
_HEADER = struct.Struct("<BBBBII")
_HEADER_DTYPE = np.dtype([("version", "u1"), ("kind", "u1"), ("token_bytes", "u1"), ("has_scores", "u1"),
                          ("num_texts", "<u4"), ("num_positives", "<u4")])


class Text(NamedTuple):
    tokens: np.ndarray  # [stored length] uint16 or uint32, without special tokens
    full_length: int  # tokens before the cap
    text_id: int  # 64-bit hash of the text, never 0


class Example(NamedTuple):
    kind: str  # one of KINDS
    texts: tuple[Text, ...]  # query, positives, negatives
    num_positives: int
    scores: np.ndarray | None = None  # [len(texts) - 1] float32, NaN if a text has none

    @property
    def query(self) -> Text:
        return self.texts[0]

    @property
    def positives(self) -> tuple[Text, ...]:
        return self.texts[1 : 1 + self.num_positives]

    @property
    def negatives(self) -> tuple[Text, ...]:
        return self.texts[1 + self.num_positives :]


def text_id(text: str) -> int:
    """64-bit BLAKE2b hash of the stripped text's UTF-8 bytes; never 0, which stands for "no text"."""
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def token_dtype(vocab_size: int) -> np.dtype:
    """The type in which tokens of a vocabulary of this size are stored."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def encode_record(example: Example) -> bytes:
    """The bytes of one example, as the module's docstring lays them out."""
    kind, texts, num_positives, scores = example
    dtype = texts[0].tokens.dtype
    parts = [
        _HEADER.pack(FORMAT_VERSION, KINDS.index(kind), dtype.itemsize, scores is not None, len(texts), num_positives),
        np.array([text.text_id for text in texts], "<u8").tobytes(),
        np.array([text.full_length for text in texts], "<u4").tobytes(),
        np.array([len(text.tokens) for text in texts], "<u2").tobytes(),
    ]
    if scores is not None:
        parts.append(np.asarray(scores, "<f4").tobytes())
    parts.extend(text.tokens.tobytes() for text in texts)
    return b"".join(parts)


def decode_record(record: bytes) -> Example:
    """The example of one record. Token arrays are read-only views of the record's bytes."""
    version, kind, token_bytes, has_scores, count, num_positives = _HEADER.unpack_from(record)
    if version != FORMAT_VERSION:
        raise ValueError(f"a record of format {version}; this code reads {FORMAT_VERSION}: run prepare again")
    position = _HEADER.size
    ids = np.frombuffer(record, "<u8", count, position).tolist()
    full_lengths = np.frombuffer(record, "<u4", count, position + 8 * count).tolist()
    lengths = np.frombuffer(record, "<u2", count, position + 12 * count).tolist()
    position += 14 * count
    scores = None
    if has_scores:
        scores = np.frombuffer(record, "<f4", count - 1, position)
        position += 4 * (count - 1)
    tokens = np.frombuffer(record, f"<u{token_bytes}", -1, position)
    texts, start = [], 0
    for length, full_length, identifier in zip(lengths, full_lengths, ids):
        texts.append(Text(tokens[start : start + length], full_length, identifier))
        start += length
    return Example(KINDS[kind], tuple(texts), num_positives, scores)


class RecordTable(NamedTuple):
    """The records of b examples, end to end, and their headers. Every field of a record begins at an even byte."""

    halves: np.ndarray  # [bytes / 2] uint16
    starts: np.ndarray  # [b] int64, in halves
    headers: np.ndarray  # [b] of the fields of _HEADER_DTYPE


class StoredTexts(NamedTuple):
    """M texts of records, one after the other."""

    tokens: np.ndarray  # [sum of lengths] int32
    lengths: np.ndarray  # [M] int64, tokens read of each text
    full_lengths: np.ndarray  # [M] uint32, tokens before any cap
    text_ids: np.ndarray  # [M] uint64


def read_table(records: Sequence[bytes]) -> RecordTable:
    """Reads the headers of all records at once: with `gather_stored` 0.6 us per example, one by one it takes 7 us."""
    halves = np.frombuffer(b"".join(records), "<u2")
    sizes = np.fromiter(map(len, records), np.int64, len(records)) // 2
    starts = np.cumsum(sizes) - sizes
    headers = gather_values(halves, starts, _HEADER_DTYPE)
    if (headers["version"] != FORMAT_VERSION).any():
        found = headers["version"][headers["version"] != FORMAT_VERSION][0]
        raise ValueError(f"a record of format {found}; this code reads {FORMAT_VERSION}: run prepare again")
    return RecordTable(halves, starts, headers)


def gather_stored(
    table: RecordTable,
    examples: np.ndarray,  # [M] int64, example of each text
    places: np.ndarray,  # [M] int64, place of each text in its record
    max_tokens: np.ndarray,  # [M] int64
) -> StoredTexts:
    """Reads the first max_tokens[i] tokens of each text (examples[i], places[i])."""
    headers = table.headers
    num_texts = headers["num_texts"].astype(np.int64)
    ids_at = table.starts + _HEADER_DTYPE.itemsize // 2
    full_lengths_at = ids_at + 4 * num_texts
    lengths_at = full_lengths_at + 2 * num_texts
    tokens_at = lengths_at + num_texts + np.where(headers["has_scores"] != 0, 2 * (num_texts - 1), 0)

    stored = table.halves[np.repeat(lengths_at, num_texts) + ragged_arange(num_texts)].astype(np.int64)
    tokens_before = np.cumsum(stored) - stored  # tokens of all texts before, counted over all examples
    first_texts = np.cumsum(num_texts) - num_texts  # [b], the number of each example's first text in `stored`
    texts = first_texts[examples] + places
    halves_per_token = int(headers["token_bytes"][0]) // 2 if len(headers) else 1
    text_at = tokens_at[examples] + halves_per_token * (tokens_before[texts] - tokens_before[first_texts[examples]])

    lengths = np.minimum(stored[texts], max_tokens)
    sources = np.repeat(text_at, lengths) + halves_per_token * ragged_arange(lengths)
    tokens = table.halves[sources].astype(np.int32)
    if halves_per_token == 2:
        tokens |= table.halves[sources + 1].astype(np.int32) << 16
    full_lengths = gather_values(table.halves, full_lengths_at[examples] + 2 * places, np.dtype("<u4"))
    text_ids = gather_values(table.halves, ids_at[examples] + 4 * places, np.dtype("<u8"))
    return StoredTexts(tokens, lengths, full_lengths, text_ids)


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def gather_values(halves: np.ndarray, starts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """One value of `dtype` from each start [m] -> [m]."""
    return halves[starts[:, None] + np.arange(dtype.itemsize // 2)].view(dtype)[:, 0]


def shard_name(index: int, num_shards: int) -> str:
    return f"{index:05d}-of-{num_shards:05d}.arrayrecord"


def open_writer(path: Path) -> ArrayRecordWriter:
    return ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)


def checksum(path: Path) -> str:
    """CRC-32 of a file as eight hexadecimal digits (at least 1 GB/s per core)."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(CHECKSUM_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def read_manifest(data_dir: str | Path) -> dict:
    """DATA_DIR/manifest.json: {"format", "tokenizer", "datasets", "prompts"}, as above."""
    path = Path(data_dir) / "manifest.json"
    if not path.exists():
        if not Path(data_dir).exists():
            found = "does not exist"
        elif not Path(data_dir).is_dir():
            found = "is a file, not a folder that `main.py prepare` wrote"
        else:
            found = "has no manifest.json: it is not a folder that `main.py prepare` finished"
        raise ValueError(f"--data_dir={data_dir} {found}. Run `python main.py prepare --source_dir=FOLDER_OF_TEXTS "
                         "--tokenizer=MODEL --data_dir=NEW_FOLDER` first, and give NEW_FOLDER as --data_dir")
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT_VERSION:
        raise ValueError(f"{path}: format {manifest.get('format')}, this code reads {FORMAT_VERSION}: prepare again")
    _require_keys(path, manifest, ("tokenizer", "datasets", "prompts"))
    return manifest


def _require_keys(path: Path, values: dict, keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(map(repr, missing))}: an older version wrote it. Run "
                         "`main.py prepare` with this --data_dir again")


def read_dataset_manifest(data_dir: str | Path, name: str) -> dict:
    """The manifest of one dataset; an unknown name is an error that lists the known ones."""
    known = [dataset["name"] for dataset in read_manifest(data_dir)["datasets"]]
    path = Path(data_dir) / name / "manifest.json"
    if name not in known or not path.exists():
        raise ValueError(f"unknown dataset {name!r}: {data_dir} has {', '.join(known)}")
    manifest = json.loads(path.read_text())
    _require_keys(path, manifest.get("options", {}), ("prompts",))
    return manifest


def find_prompts(data_dir: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The prompts of the first of these datasets that has any, by role; {} if none has."""
    for name in names:
        prompts = read_dataset_manifest(data_dir, name)["options"]["prompts"]
        if any(prompts.values()):
            return prompts
    return {}


def require_same_tokenizer(data_dir: str | Path, fingerprint: str) -> None:
    """Raises if the shards were made with another tokenizer than the model's."""
    found = read_manifest(data_dir)["tokenizer"]["fingerprint"]
    if found != fingerprint:
        raise ValueError(
            f"{data_dir} was prepared with another tokenizer: its fingerprint is {found}, the model's is "
            f"{fingerprint}. Run `main.py prepare` with the model's tokenizer into another --data_dir."
        )


def verify_shard(path: Path, shard: dict, verify: str, command: str = "prepare") -> None:
    """Raises ValueError if the file is not what its manifest says; `command` is the one that writes it."""
    advice = f"delete its folder and run `main.py {command}` again"
    if not path.exists():
        raise ValueError(f"{path} is missing: {advice}")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise ValueError(f"{path} has {size} bytes, its manifest says {shard['bytes']} (truncated?): {advice}")
    if verify == "checksum" and (found := checksum(path)) != shard["crc32"]:
        raise ValueError(f"{path} has CRC-32 {found}, its manifest says {shard['crc32']} (damaged): {advice}")


def allow_open_files(count: int) -> None:
    """Raises the soft limit on open files if `count` more would not fit (a mixture keeps every shard open)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


class RecordReader:
    """Random access to the records of a folder's shards; safe to share between threads."""

    def __init__(self, name: str, folder: Path, manifest: dict, command: str = "prepare"):
        self.name = name  # of the dataset
        self.manifest = manifest
        self._command = command  # that writes the shards
        self._paths = [folder / shard["file"] for shard in manifest["shards"]]
        self._counts = [shard["records"] for shard in manifest["shards"]]
        self._ends = np.cumsum(self._counts).tolist()  # index of the first example after each shard
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def read_records(self, indices: Sequence[int]) -> list[bytes]:
        """The undecoded records of these indices, in their order."""
        places: dict[int, list[int]] = {}  # shard -> positions in `indices` of its records
        indices = [int(index) for index in indices]
        for place, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"example {index} of {self.name}, which has {len(self)}")
            places.setdefault(bisect.bisect_right(self._ends, index), []).append(place)
        records: list[bytes] = [b""] * len(indices)
        for shard, shard_places in places.items():
            first = self._ends[shard] - self._counts[shard]
            reader = self._reader(shard)
            try:
                found = reader.read([indices[place] - first for place in shard_places])
            except RuntimeError as error:
                path, command = self._paths[shard], self._command
                raise ValueError(f"{path} is damaged ({error}): run `main.py {command}` again") from error
            for place, record in zip(shard_places, found):
                records[place] = record
        return records

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if self._readers[shard] is None:
                path, expected = os.fspath(self._paths[shard]), self._counts[shard]
                reader = ArrayRecordReader(path, options=READER_OPTIONS, file_reader_buffer_size=READER_BUFFER_BYTES)
                if reader.num_records() != expected:
                    raise ValueError(
                        f"{path} has {reader.num_records()} readable records, its manifest says {expected} (damaged): "
                        f"delete its folder and run `main.py {self._command}` again"
                    )
                self._readers[shard] = reader
            return self._readers[shard]


class DatasetReader(RecordReader):
    """Random access to the examples of one dataset."""

    def __init__(self, data_dir: Path, manifest: dict):
        super().__init__(manifest["name"], Path(data_dir) / manifest["name"], manifest)
        self.kind: str = manifest["kind"]
        self.has_negatives: bool = manifest["has_negatives"]

    def read(self, indices: Sequence[int]) -> list[Example]:
        """The examples of these indices, in their order. Many at a time: 10 us per example; one by one: 25 us."""
        return [decode_record(record) for record in self.read_records(indices)]


def open_dataset(data_dir: str | Path, name: str, verify: Literal["checksum", "size"] = "checksum") -> DatasetReader:
    """Opens one dataset of a prepared folder.

    verify: "checksum" compares the CRC-32 of every shard (reads it once, about 1 GB/s); "size" compares sizes only, and
    a flipped bit is found when the record is read. A missing, truncated or damaged shard raises ValueError naming it.
    """
    manifest = read_dataset_manifest(data_dir, name)
    for shard in manifest["shards"]:
        verify_shard(Path(data_dir) / name / shard["file"], shard, verify)
    allow_open_files(sum(dataset["shards"] for dataset in read_manifest(data_dir)["datasets"]))
    return DatasetReader(Path(data_dir), manifest)
