"""Turns one dataset's blocks of lines into shards: worker processes tokenise them, the main process writes them.

A dataset is written to DATA_DIR/<name>.partial, its manifest last. The folder is renamed to DATA_DIR/<name> when it is
complete. So a dataset folder that exists is finished, even if the process was killed.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data.examples import NO_PROMPTS, BadLine, Prompts, RawExample
from data.files import file_state, write_json
from data.first_block import named_reasons
from data.formats import Layout, parse_records
from data.shards import (
    FORMAT_VERSION,
    Example,
    Text,
    checksum,
    encode_record,
    open_writer,
    shard_name,
    text_id,
    token_dtype,
)
from data.source_file import SourceFile
from data.tokenizer import TextTokenizer, load_tokenizer

NAMED_BAD_LINES = 1000  # bad lines that a manifest names; all are counted, by reason
NAMED_KEYS = 20  # ignored keys that a manifest names
LENGTH_EDGES = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)  # tokens; lower edges of the bins

_worker_tokenizer: TextTokenizer | None = None


class Block(NamedTuple):
    """Some lines or rows, and what a worker needs to know to tokenise them."""

    first_line: int
    lines: bytes
    layout: Layout
    file_kind: str | None  # None: no good line yet
    max_tokens: int
    prompts: Prompts = NO_PROMPTS


class TokenisedBlock(NamedTuple):
    records: list[bytes]
    num_lines: int
    bad_lines: list[tuple[int, str]]  # (line number, reason)
    lengths: np.ndarray  # [texts] int32: full length of each text of the records
    ignored_keys: frozenset[str] = frozenset()  # of JSON objects


def start_worker(tokenizer_folder: str) -> None:
    """Initialises a worker process: one tokenizer, one thread, and an end when its parent ends (kill -9 too)."""
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = load_tokenizer(tokenizer_folder)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def tokenise_in_worker(block: Block) -> TokenisedBlock:
    return tokenise_block(block, _worker_tokenizer)


def parse_block(block: Block) -> tuple[list[tuple[int, RawExample]], list[tuple[int, str]]]:
    """(line number, example) of the good lines, (line number, reason) of the bad ones."""
    numbered, bad_lines = [], []
    for number, raw in parse_records(block.first_line, block.lines, block.layout):
        if isinstance(raw, BadLine):
            bad_lines.append((number, str(raw)))
        elif raw.file_kind != block.file_kind:
            bad_lines.append((number, f"{_article(raw.file_kind)} in a file of {_plural(block.file_kind)}"))
        else:
            numbered.append((number, raw))
    return numbered, bad_lines


def tokenise_block(block: Block, tokenizer: TextTokenizer) -> TokenisedBlock:
    """Parses and tokenises the lines of a block; bad lines, and those of a text without tokens, are left out."""
    numbered, bad_lines = parse_block(block)
    num_lines = len(numbered) + len(bad_lines)
    tokens = iter(tokenizer.encode([text for _, raw in numbered for text in raw.prompted(block.prompts)]))
    dtype = token_dtype(tokenizer.vocab_size)
    records, lengths = [], []
    for number, raw in numbered:
        text_tokens = [next(tokens) for _ in raw.texts]
        text_lengths = [len(text) for text in text_tokens]
        if 0 in text_lengths:
            bad_lines.append((number, "a text without any token"))
            continue
        records.append(encode_record(_example(raw, text_tokens, dtype, block.max_tokens)))
        lengths.extend(text_lengths)
    return TokenisedBlock(records, num_lines, sorted(bad_lines), np.array(lengths, np.int32),
                          frozenset(key for _, raw in numbered for key in raw.ignored_keys))


def _example(raw: RawExample, tokens: list[np.ndarray], dtype: np.dtype, max_tokens: int) -> Example:
    texts = tuple(
        Text(text_tokens[:max_tokens].astype(dtype), len(text_tokens), text_id(text))
        for text, text_tokens in zip(raw.texts, tokens)
    )
    scores = None if raw.scores is None else np.array(raw.scores, np.float32)
    return Example(raw.kind, texts, raw.num_positives, scores)


def _article(file_kind: str) -> str:
    return "a line of " + file_kind if file_kind.startswith("lists") else f"a {file_kind}"


def _plural(file_kind: str) -> str:
    return file_kind if file_kind.startswith("lists") else f"{file_kind}s"


def blocks_of(source: SourceFile, max_tokens: int, prompts: Prompts = NO_PROMPTS) -> Iterator[Block]:
    """The blocks of a file, each with the kind of the file, which its first good line decides.

    Raises ValueError if the two prompts differ and the texts have no roles: sets, or files of one text per line.
    """
    file_kind = None
    for first_line, lines in source.blocks():
        file_kind = file_kind or _first_kind(first_line, lines, source.layout)
        if (file_kind == "set" or source.syntax == "text") and prompts.query != prompts.document:
            raise ValueError(
                f"{source.path}: its texts are neither queries nor documents, so they take the same prompt, not "
                f"--query_prompt={prompts.query!r} and --document_prompt={prompts.document!r}"
            )
        yield Block(first_line, lines, source.layout, file_kind, max_tokens, prompts)


def _first_kind(first_line: int, lines: bytes, layout: Layout) -> str | None:
    parsed = (raw.file_kind for _, raw in parse_records(first_line, lines, layout) if not isinstance(raw, BadLine))
    return next(parsed, None)


class ShardWriter:
    """Writes records to the shards of a folder. `sizes` gives the records per shard; the last may have fewer."""

    def __init__(self, folder: Path, sizes: Iterable[int]):
        self.folder = folder
        self.shard_records: list[int] = []
        self._sizes = iter(sizes)
        self._size = 0
        self._writer: Any = None

    def write(self, record: bytes) -> None:
        if self._writer is None:
            self._writer = open_writer(self.folder / f"{len(self.shard_records):05d}")
            self._size = next(self._sizes)
            self.shard_records.append(0)
        self._writer.write(record)
        self.shard_records[-1] += 1
        if self.shard_records[-1] == self._size:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def finish(self) -> list[dict]:
        """Closes the last shard and gives all shards their names. Returns the manifest's entry for each."""
        self._close_shard()
        shards = []
        for index, records in enumerate(self.shard_records):
            path = self.folder / shard_name(index, len(self.shard_records))
            os.rename(self.folder / f"{index:05d}", path)
            written = ArrayRecordReader(os.fspath(path)).num_records()
            if written != records:
                raise OSError(f"{path}: {records} records were written and {written} can be read")
            shards.append({
                "file": path.name, "records": records, "bytes": path.stat().st_size, "crc32": checksum(path),
            })
        return shards


class DatasetWriter:
    """Writes the tokenised blocks of one file, in their order, as shards and a manifest."""

    def __init__(self, data_dir: Path, name: str, source: SourceFile, records_per_shard: int, attempt: str = ""):
        self.name = name
        self.source = source
        self.final_folder = data_dir / name
        self.folder = data_dir / f"{name}{attempt}.partial"
        self.file_kind: str | None = None
        self.num_lines = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.bad_lines: list[tuple[int, str]] = []
        self.ignored_keys: set[str] = set()
        self.length_counts = np.zeros(len(LENGTH_EDGES), np.int64)
        self.num_texts = self.num_tokens = self.truncated_texts = 0
        self._shards = ShardWriter(self.folder, itertools.repeat(records_per_shard))
        with named_write_errors(self.folder):
            new_partial(self.folder)

    def add(self, block: Block, result: TokenisedBlock) -> None:
        self.file_kind = block.file_kind
        self.num_lines += result.num_lines
        if len(self.ignored_keys) < NAMED_KEYS:
            self.ignored_keys |= result.ignored_keys
        self.reasons.update(reason for _, reason in result.bad_lines)
        self.bad_lines.extend(result.bad_lines[: NAMED_BAD_LINES - len(self.bad_lines)])
        self.num_texts += len(result.lengths)
        self.num_tokens += int(result.lengths.sum())
        self.truncated_texts += int((result.lengths > block.max_tokens).sum())
        bins = np.searchsorted(LENGTH_EDGES, result.lengths, side="right") - 1
        self.length_counts += np.bincount(bins, minlength=len(LENGTH_EDGES))
        with named_write_errors(self.folder):
            for record in result.records:
                self._shards.write(record)

    def require_few_bad_lines(self, max_bad_share: float) -> None:
        """Raises ValueError if the file has no good line, or a larger share of bad lines than is allowed."""
        bad = self.reasons.total()
        named = named_reasons(self.source.path, self.bad_lines)
        if not self._shards.shard_records:
            named = named or "all of them are blank, or a header"
            raise ValueError(f"{self.source.path}: no example in {self.num_lines} lines: {named}")
        if bad > max_bad_share * self.num_lines:
            raise ValueError(
                f"{self.source.path}: {bad} of {self.num_lines} lines are bad ({bad / self.num_lines:.2%}), more than "
                f"--max_bad_share={max_bad_share:g} allows: {named}"
            )

    def finish(self, tokenizer_fingerprint: str, options: dict) -> dict:
        """Closes the shards, writes the manifest and gives the folder its name. Returns the manifest."""
        with named_write_errors(self.folder):
            shards = self._shards.finish()
            manifest = {
                "format": FORMAT_VERSION,
                "name": self.name,
                "kind": self.file_kind.split()[0],
                "has_negatives": self.file_kind in ("triplet", "lists with negatives"),
                "examples": sum(shard["records"] for shard in shards),
                "lines": self.num_lines,
                "texts": self.num_texts,
                "tokens": self.num_tokens,
                "truncated_texts": self.truncated_texts,
                "length_histogram": {"edges": list(LENGTH_EDGES), "counts": self.length_counts.tolist()},
                "skipped": {
                    "count": self.reasons.total(),
                    "reasons": dict(self.reasons.most_common(NAMED_BAD_LINES)),
                    "first": [list(bad_line) for bad_line in self.bad_lines],
                },
                "columns": self.source.columns,
                "ignored_keys": sorted(self.ignored_keys)[:NAMED_KEYS],
                "source": file_state(self.source.path) | {"crc32": f"{self.source.crc32:08x}"},
                "tokenizer": tokenizer_fingerprint,
                "options": options,
                "shards": shards,
            }
            write_json(self.folder / "manifest.json", manifest)
            replace_folder(self.final_folder, self.folder)
        return manifest


def new_partial(folder: Path) -> None:
    """Makes an empty folder and removes what a killed run may have left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def replace_folder(final: Path, partial: Path) -> None:
    """Gives the partial folder its final name and replaces an outdated folder of that name."""
    if final.exists():
        shutil.rmtree(final)
    os.rename(partial, final)


@contextlib.contextmanager
def named_write_errors(folder: Path) -> Iterator[None]:
    """Turns errors of a full or unwritable disk into an OSError that names the folder."""
    try:
        yield
    except RuntimeError as error:  # the only error that ArrayRecord raises
        raise OSError(f"cannot write in {folder}: {error}. Make room or choose another --data_dir") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"cannot write in {folder}: {error}. Make room or choose another --data_dir") from error


def is_unchanged(manifest: dict, path: Path) -> bool:
    """Whether a dataset's source has not changed: the same size and time, or the same size and CRC-32."""
    now, then = file_state(path), manifest["source"]
    if now["bytes"] != then["bytes"]:
        return False
    return now["mtime_ns"] == then["mtime_ns"] or checksum(path) == then["crc32"]
