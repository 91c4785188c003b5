"""Drawing: records of examples -> the texts that a batch shows of them, for a whole batch at once.

Legend (this module): b examples (records), K texts an example (2: query, positive; 3: and a hard negative), M texts,
N tokens. The bytes of a record are laid out in data/shards.py; reading the fields of all records with a few numpy
gathers takes 0.6 us an example, where decoding one after the other takes 7 us.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.shards import FORMAT_VERSION, KINDS

NO_TEXT = -1  # the example has no text for this role
_HEADER = np.dtype([("version", "u1"), ("kind", "u1"), ("token_bytes", "u1"), ("has_scores", "u1"),
                    ("num_texts", "<u4"), ("num_positives", "<u4")])
_SET = KINDS.index("set")


class RecordTable(NamedTuple):
    """The records of b examples, end to end, and their headers. Every field of a record begins at an even byte."""

    halves: np.ndarray  # [bytes / 2] uint16
    starts: np.ndarray  # [b] int64, in halves
    headers: np.ndarray  # [b] _HEADER


class RaggedTexts(NamedTuple):
    """M texts, special tokens included, one after the other."""

    tokens: np.ndarray  # [N] int32
    lengths: np.ndarray  # [M] int64, 0 = no text
    text_ids: np.ndarray  # [M] uint64, 0 = no text
    truncated: np.ndarray  # [M] bool


def read_table(records: Sequence[bytes]) -> RecordTable:
    halves = np.frombuffer(b"".join(records), "<u2")
    sizes = np.fromiter(map(len, records), np.int64, len(records)) // 2
    starts = np.cumsum(sizes) - sizes
    headers = gather_values(halves, starts, _HEADER)
    if (headers["version"] != FORMAT_VERSION).any():
        found = headers["version"][headers["version"] != FORMAT_VERSION][0]
        raise ValueError(f"a record of format {found}; this code reads {FORMAT_VERSION}: run prepare again")
    return RecordTable(halves, starts, headers)


def draw_texts(table: RecordTable, choices: np.ndarray, texts_per_example: int) -> np.ndarray:
    """The texts that stand for each example: [K, b] int64 places in its record, NO_TEXT where it has no negative.

    Of a set, two different texts; else the query, one of the positives and, where K = 3, one of the negatives.
    choices [b, 4] uint64 are random words; a remainder of 64 bits is even enough for lists of any length.
    """
    num_texts = table.headers["num_texts"].astype(np.int64)
    num_positives = table.headers["num_positives"].astype(np.int64)
    num_negatives = num_texts - 1 - num_positives

    def choose(word: int, count: np.ndarray) -> np.ndarray:
        return (choices[:, word] % np.maximum(count, 1).astype(np.uint64)).astype(np.int64)

    in_set = table.headers["kind"] == _SET
    query = np.where(in_set, choose(0, num_texts), 0)
    positive = (query + 1 + choose(1, num_positives)) % num_texts  # of a set, p = n - 1: any text but the query
    if texts_per_example == 2:
        return np.stack([query, positive])
    negative = np.where(num_negatives > 0, 1 + num_positives + choose(2, num_negatives), NO_TEXT)
    return np.stack([query, positive, negative])


def gather_texts(
    table: RecordTable,
    examples: np.ndarray,  # [M] int64, example of each text
    places: np.ndarray,  # [M] int64, place of each text in its record, or NO_TEXT
    max_length: int,  # tokens of a text, its prefix and suffix included
    prefix_id: int,
    suffix_id: int,
) -> RaggedTexts:
    """Reads the texts (examples[i], places[i]), cuts each to max_length and puts prefix and suffix around it."""
    headers, there = table.headers, places != NO_TEXT
    num_texts = headers["num_texts"].astype(np.int64)
    ids_at = table.starts + _HEADER.itemsize // 2
    full_lengths_at = ids_at + 4 * num_texts
    lengths_at = full_lengths_at + 2 * num_texts
    tokens_at = lengths_at + num_texts + np.where(headers["has_scores"] != 0, 2 * (num_texts - 1), 0)

    stored = table.halves[np.repeat(lengths_at, num_texts) + ragged_arange(num_texts)].astype(np.int64)
    tokens_before = np.cumsum(stored) - stored  # tokens of all texts before, counted over all examples
    first_texts = np.cumsum(num_texts) - num_texts  # [b], the number of each example's first text in `stored`
    places = np.where(there, places, 0)
    texts = first_texts[examples] + places
    halves_per_token = int(headers["token_bytes"][0]) // 2 if len(headers) else 1
    text_at = tokens_at[examples] + halves_per_token * (tokens_before[texts] - tokens_before[first_texts[examples]])

    full_lengths = gather_values(table.halves, full_lengths_at[examples] + 2 * places, np.dtype("<u4"))
    kept = np.where(there, np.minimum(stored[texts], max_length - 2), 0)
    sources = np.repeat(text_at, kept) + halves_per_token * ragged_arange(kept)
    inner = table.halves[sources].astype(np.int32)
    if halves_per_token == 2:
        inner |= table.halves[sources + 1].astype(np.int32) << 16
    lengths = np.where(there, kept + 2, 0)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(lengths.sum()), np.int32)
    tokens[(ends - lengths)[there]] = prefix_id
    tokens[ends[there] - 1] = suffix_id
    tokens[np.repeat(ends - lengths + 1, kept) + ragged_arange(kept)] = inner
    text_ids = gather_values(table.halves, ids_at[examples] + 4 * places, np.dtype("<u8"))
    return RaggedTexts(tokens, lengths, np.where(there, text_ids, np.uint64(0)), there & (full_lengths > kept))


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def gather_values(halves: np.ndarray, starts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """One value of `dtype` from each start [m] -> [m]."""
    return halves[starts[:, None] + np.arange(dtype.itemsize // 2)].view(dtype)[:, 0]
