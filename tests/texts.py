"""What several tests do with texts: pack token arrays, read a training file line by line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.columns import Columns
from data.examples import BadLine, RawExample
from data.formats import parse_records
from data.packing import PackedTexts, pack_blocks
from data.source_file import SourceFile


def pack_texts(
    texts: Sequence[np.ndarray],  # T arrays of token ids, special tokens included; an empty one is an empty slot
    text_ids: np.ndarray | None,  # [T] uint64; None: zeros (inference masks nothing)
    row_length: int,
    pad_id: int,
    num_rows: int | None = None,
) -> PackedTexts:
    """Packs a list of token arrays into one block (P = 1); the same errors as pack_blocks."""
    lengths = np.array([[len(text) for text in texts]], np.int64)
    tokens = np.concatenate(texts) if len(texts) else np.zeros(0, np.int32)
    if text_ids is None:
        text_ids = np.zeros(len(texts), np.uint64)
    return pack_blocks(tokens, lengths, np.asarray(text_ids, np.uint64)[None], row_length, pad_id, num_rows)[0]


def read_examples(
    path: str | Path, tsv_header: bool = False, tsv: str = "texts", columns: Columns | None = None
) -> Iterator[tuple[int, RawExample | BadLine]]:
    """(line number, example or the reason why there is none) of each line."""
    source = SourceFile(Path(path), tsv_header, tsv, columns)
    for first_line, block in source.blocks():
        yield from parse_records(first_line, block, source.layout)
