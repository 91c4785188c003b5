"""Embeddings of a frozen teacher beside the tokens: the byte format of one example, writing, finding and reading them.

    DATA_DIR/<dataset>/teacher-<fingerprint>/teacher.json                 the teacher, and what it was shown
    DATA_DIR/<dataset>/teacher-<fingerprint>/00000-of-00004.arrayrecord   as many shards as the dataset has

Record i belongs to example i of the dataset, and shards have as many records as the dataset's. `main.py teach` writes
them (inference/teach.py). A teacher has its own tokenizer, so it gets the source text, read again as prepare
read it, without prepare's prompts. Each example's text ids are compared with those of the dataset when they are
written, and with those of the texts drawn when they are read. When prepare writes a dataset again, the old
embeddings are removed. The fingerprint is a hash of the teacher's configuration, parameters and tokenizer. Embeddings
are stored as the teacher's last head gives them, not normalised.

Bytes of a record (little-endian); n = 1 (the first text: the query) or all texts of the example, D_t = width:

    0   uint8        format version, 1
    1   uint8        0 float32, 1 float16
    2   uint16       0
    4   uint32       n
    8   uint32       D_t
    12  uint64 [n]   text ids
        float32 or float16 [n, D_t]   embeddings
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.columns import parse_columns
from data.drawing import NO_TEXT
from data.files import write_json
from data.shards import (
    DatasetReader,
    RecordReader,
    allow_open_files,
    checksum,
    gather_values,
    read_dataset_manifest,
    read_manifest,
    text_id,
    verify_shard,
)
from data.source_file import SourceFile
from data.tokenizer import TextTokenizer
from data.writer import ShardWriter, blocks_of, named_write_errors, new_partial, parse_block, replace_folder

FORMAT_VERSION = 1
MANIFEST = "teacher.json"  # prepare looks for every manifest.json below DATA_DIR
DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}  # in the order of their codes
_CODES = {dtype: code for code, dtype in enumerate(DTYPES.values())}
_STRUCT = struct.Struct("<BBHII")
_HEADER = np.dtype([("version", "u1"), ("dtype", "u1"), ("zero", "<u2"), ("num_texts", "<u4"), ("width", "<u4")])


class Teacher(NamedTuple):
    """What the embeddings of all datasets of a mixture share."""

    fingerprint: str
    width: int
    texts: Literal["all", "first"]
    dtype: Literal["float32", "float16"]
    normalize: bool  # the teacher has a Normalize module, which the reader of the embeddings applies


class ExampleTexts(NamedTuple):
    texts: tuple[str, ...]
    text_ids: np.ndarray  # [n] uint64


def store_folder(data_dir: str | Path, dataset: str, fingerprint: str) -> Path:
    return Path(data_dir) / dataset / f"teacher-{fingerprint}"


def encode_embeddings(text_ids: np.ndarray, embeddings: np.ndarray) -> bytes:
    """The record of one example: text_ids [n] uint64, embeddings [n, D_t] in one of DTYPES."""
    header = _STRUCT.pack(FORMAT_VERSION, _CODES[embeddings.dtype], 0, *embeddings.shape)
    return header + text_ids.astype("<u8").tobytes() + embeddings.tobytes()


def gather_embeddings(
    records: Sequence[bytes],
    examples: np.ndarray,  # [M] int64, the record of each text
    places: np.ndarray,  # [M] int64, place of each text in its example, or NO_TEXT
    teacher: Teacher,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the texts (examples[i], places[i]): text ids [M] uint64 and embeddings [M, D_t] float32.

    Both are 0 if there is no text, or the record has none at that place.
    """
    joined = b"".join(records)
    sizes = np.fromiter(map(len, records), np.int64, len(records))
    starts = np.cumsum(sizes) - sizes  # bytes
    halves, dtype = np.frombuffer(joined, "<u2"), np.dtype(DTYPES[teacher.dtype])
    headers = gather_values(halves, starts // 2, _HEADER)
    for field, expected in (("version", FORMAT_VERSION), ("dtype", _CODES[dtype]), ("width", teacher.width)):
        if (headers[field] != expected).any():
            found = headers[field][headers[field] != expected][0]
            raise ValueError(f"a record of teacher {teacher.fingerprint} has {field} {found}, not {expected}: "
                             "run `main.py teach` again")
    num_texts = headers["num_texts"].astype(np.int64)
    there = (places != NO_TEXT) & (places < num_texts[examples])
    places = np.where(there, places, 0)
    ids_at = starts + _HEADER.itemsize
    text_ids = gather_values(halves, (ids_at[examples] + 8 * places) // 2, np.dtype("<u8"))
    rows_at = ((ids_at + 8 * num_texts) // dtype.itemsize)[examples] + teacher.width * places
    values = np.frombuffer(joined, dtype)
    rows = np.lib.stride_tricks.sliding_window_view(values, teacher.width)[rows_at].astype(np.float32)
    rows[~there] = 0
    return np.where(there, text_ids, np.uint64(0)), rows


def find_teacher(data_dir: str | Path, names: Iterable[str], fingerprint: str) -> Teacher:
    """Describes the stored embeddings of this teacher, for these datasets of a prepared folder.

    Raises:
      ValueError: a dataset has none, or was prepared again since; the datasets do not agree.
    """
    found = {name: _describe(data_dir, name, fingerprint) for name in names}
    first, *others = found
    for name in others:
        if found[name] != found[first]:
            raise ValueError(
                f"the embeddings of teacher {fingerprint} differ in kind: {first} has {_kind(found[first])}, "
                f"{name} has {_kind(found[name])}: run `main.py teach` for all datasets with the same flags"
            )
    return found[first]


def _kind(teacher: Teacher) -> str:
    return f"{teacher.texts} texts in {teacher.dtype}, width {teacher.width}"


def _describe(data_dir: str | Path, name: str, fingerprint: str) -> Teacher:
    manifest = _read_manifest(data_dir, name, fingerprint)
    if manifest["dataset_shards"] != _shard_checksums(read_dataset_manifest(data_dir, name)):
        raise ValueError(
            f"the dataset {data_dir}/{name} has changed since teacher {fingerprint} embedded it: run `main.py teach` "
            "again"
        )
    return Teacher(**{field: manifest[field] for field in Teacher._fields})


def _read_manifest(data_dir: str | Path, name: str, fingerprint: str) -> dict:
    path = store_folder(data_dir, name, fingerprint) / MANIFEST
    if not path.exists():
        folders = [other.parent.name for other in path.parent.parent.glob(f"teacher-*/{MANIFEST}")]
        present = sorted(folder.removeprefix("teacher-") for folder in folders if not folder.endswith(".partial"))
        raise ValueError(
            f"{data_dir}/{name} has no embeddings of teacher {fingerprint} (it has those of "
            f"{', '.join(present) or 'none'}): run `main.py teach --teacher=MODEL --data_dir={data_dir} ..`"
        )
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT_VERSION:
        raise ValueError(f"{path}: format {manifest.get('format')}, this code reads {FORMAT_VERSION}: teach again")
    return manifest


def _shard_checksums(manifest: dict) -> list[str]:
    return [shard["crc32"] for shard in manifest["shards"]]


def open_embeddings(
    data_dir: str | Path, name: str, fingerprint: str, verify: Literal["checksum", "size"] = "checksum"
) -> RecordReader:
    """The records of one dataset's embeddings; `verify` as in shards.open_dataset, and the same errors."""
    folder, manifest = store_folder(data_dir, name, fingerprint), _read_manifest(data_dir, name, fingerprint)
    for shard in manifest["shards"]:
        verify_shard(folder / shard["file"], shard, verify, "teach")
    allow_open_files(2 * sum(dataset["shards"] for dataset in read_manifest(data_dir)["datasets"]))
    return RecordReader(name, folder, manifest, "teach")


def require_same_source(source_dir: str | Path, dataset: DatasetReader) -> None:
    """Raises ValueError if a dataset's source file is not there, or not the one that it was prepared from."""
    path, expected = Path(source_dir) / dataset.name, dataset.manifest["source"]["crc32"]
    if not path.is_file():
        raise ValueError(f"there is no {path}: --source_dir must be the folder that {dataset.name} was prepared from")
    if (found := checksum(path)) != expected:
        raise ValueError(
            f"{path} has CRC-32 {found}, {dataset.name} was prepared from a file of CRC-32 {expected}: "
            "run `main.py prepare` again"
        )


def read_texts(source_dir: str | Path, dataset: DatasetReader, tokenizer: TextTokenizer) -> Iterator[ExampleTexts]:
    """The texts of each example of a dataset, in order, read again from its source as prepare read it.

    prepare leaves out lines with a text that has no token, so each line must be such a line or the next example.

    Raises:
      ValueError: the text ids of a line are not those of the example that it should be, or examples are left over.
    """
    options = dataset.manifest["options"]
    columns = parse_columns(options["columns"], dataset.name)
    source = SourceFile(Path(source_dir) / dataset.name, options["tsv_header"], options["tsv"], columns)
    stored, number = _stored_ids(dataset), 0
    expected = next(stored)
    for block in blocks_of(source, options["max_tokens_per_text"]):
        for line, raw in parse_block(block)[0]:
            text_ids = [text_id(text) for text in raw.texts]
            if text_ids == expected:
                yield ExampleTexts(raw.texts, np.array(text_ids, np.uint64))
                expected, number = next(stored, None), number + 1
            elif all(map(len, tokenizer.encode(list(raw.texts)))):
                raise ValueError(
                    f"{source.path}:{line}: its texts are not those of example {number} of {dataset.name}: text ids "
                    f"{text_ids} and {expected or 'none'}: run `main.py prepare` again"
                )
    if expected is not None:
        raise ValueError(f"{source.path} ends before example {number} of {dataset.name}: run `main.py prepare` again")


def _stored_ids(dataset: DatasetReader, window: int = 8192) -> Iterator[list[int]]:
    for start in range(0, len(dataset), window):
        for example in dataset.read(range(start, min(start + window, len(dataset)))):
            yield [text.text_id for text in example.texts]


def is_finished(data_dir: str | Path, dataset: DatasetReader, description: dict) -> bool:
    """Whether the embeddings that `description` asks for exist for the present state of the dataset."""
    folder = store_folder(data_dir, dataset.name, description["fingerprint"])
    if not (folder / MANIFEST).exists():
        return False
    manifest = json.loads((folder / MANIFEST).read_text())
    wanted = description | {"dataset_shards": _shard_checksums(dataset.manifest)}
    if any(manifest.get(key) != value for key, value in wanted.items() if key != "teacher"):
        return False
    paths = {folder / shard["file"]: shard["bytes"] for shard in manifest["shards"]}
    return all(path.exists() and path.stat().st_size == size for path, size in paths.items())


def write_embeddings(
    data_dir: str | Path, dataset: DatasetReader, description: dict, records: Iterable[bytes]
) -> None:
    """Writes the records of all examples of a dataset, in order; the folder gets its name when it is complete.

    description: {"format", "teacher", "fingerprint", "width", "texts", "dtype", "normalize", ..} of the manifest.
    """
    final = store_folder(data_dir, dataset.name, description["fingerprint"])
    partial = final.with_name(f"{final.name}.partial")
    with named_write_errors(partial):
        new_partial(partial)
    shards = ShardWriter(partial, [shard["records"] for shard in dataset.manifest["shards"]])
    for record in records:
        with named_write_errors(partial):
            shards.write(record)
    with named_write_errors(partial):
        write_json(partial / MANIFEST, description | {
            "dataset": dataset.name,
            "examples": len(dataset),
            "source": {"crc32": dataset.manifest["source"]["crc32"]},
            "dataset_shards": _shard_checksums(dataset.manifest),
            "shards": shards.finish(),
        })
        replace_folder(final, partial)
