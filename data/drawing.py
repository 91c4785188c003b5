"""Draws the texts of a batch from the records of its examples.

Legend: b examples (records) of this process, K texts per example (2: query, positive; 3: a hard negative too), M texts.
"""

from typing import NamedTuple

import numpy as np

from data.shards import KINDS, RecordTable, gather_stored, ragged_arange

NO_TEXT = -1  # the example has no text for this role
_SET = KINDS.index("set")


class RaggedTexts(NamedTuple):
    """M texts, special tokens included, one after the other."""

    tokens: np.ndarray  # [tokens] int32
    lengths: np.ndarray  # [M] int64, 0 = no text
    text_ids: np.ndarray  # [M] uint64, 0 = no text
    truncated: np.ndarray  # [M] bool


def draw_texts(table: RecordTable, choices: np.ndarray, texts_per_example: int) -> np.ndarray:
    """Draws the texts of each example: [K, b] int64 places in its record, NO_TEXT if it has no negative.

    A set gives two different texts; any other kind its query, one positive and, if K = 3, one negative.
    choices [b, 4] uint64 are random words. Remainders of 64-bit words are even enough for lists of any length.
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
    there = places != NO_TEXT
    found = gather_stored(table, examples, np.where(there, places, 0), np.where(there, max_length - 2, 0))
    kept = found.lengths
    lengths = np.where(there, kept + 2, 0)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(lengths.sum()), np.int32)
    tokens[(ends - lengths)[there]] = prefix_id
    tokens[ends[there] - 1] = suffix_id
    tokens[np.repeat(ends - lengths + 1, kept) + ragged_arange(kept)] = found.tokens
    truncated = there & (found.full_lengths > kept)
    return RaggedTexts(tokens, lengths, np.where(there, found.text_ids, np.uint64(0)), truncated)
