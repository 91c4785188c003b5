"""Packing: several texts share a row of fixed length and are told apart by segment ids.

Legend: P packing blocks, T texts per block, R rows per block, L tokens per row (row_length), S the most segments
per row.

A text of length 0 is an *empty slot*: an example without a negative, or padding of the number of texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# With texts cut at 128 tokens, rows of 128 are as full as rows of 256 in large blocks (0.97 with the ladder's loss) and
# fuller in small ones, and attention costs half as much in them. Rows of 192 leave a third unused beside long texts.
DEFAULT_ROW_LENGTH = 128
TOKENS_PER_SEGMENT = 8  # a row of L tokens holds at most S = L // 8 segments
ROW_RUNGS = 16  # per doubling in the ladder of row counts: neighbouring rungs differ by at most 1 / 16
SPARE_ROWS = 0.02  # share of unused rows that choose_row_counts allows to have fewer sizes


class PackedTexts(NamedTuple):
    """Texts packed into rows, and where each text went."""

    tokens: np.ndarray  # [P, R, L] int32, pad_id where unused
    segments: np.ndarray  # [P, R, L] int32, 0 = unused, 1.. = the texts of the row, in order
    positions: np.ndarray  # [P, R, L] int32, from 0 in each segment
    text_rows: np.ndarray  # [P, T] int32, row of each text
    text_segments: np.ndarray  # [P, T] int32, segment of each text in its row, 0 = empty slot
    text_ids: np.ndarray  # [P, T, 2] uint32, 64-bit text id as (low, high), 0, 0 = empty slot


class Placement(NamedTuple):
    """Where pack_rows puts the T texts of one block."""

    rows: np.ndarray  # [T] int32
    segments: np.ndarray  # [T] int32, 1-based in the row, 0 = empty slot
    starts: np.ndarray  # [T] int32, first token in the row
    num_rows: int


def max_segments(row_length: int) -> int:
    """S, the most segments a row may hold: the model pools over a fixed number of segments per row."""
    return max(1, row_length // TOKENS_PER_SEGMENT)


def row_count(num_rows: int, row_counts: Sequence[int] = ()) -> int:
    """The smallest of the ascending row counts that holds num_rows; if none does, the next rung of a fixed ladder.

    The ladder is 1, 2, .. 32, 34, .. 64, 68, .. 128, ...: few shapes to compile.
    """
    for count in row_counts:
        if num_rows <= count:
            return count
    if num_rows <= ROW_RUNGS:
        return max(1, num_rows)
    octave = 1 << ((num_rows - 1).bit_length() - 1)  # the power of two below num_rows
    step = max(1, octave // ROW_RUNGS)
    return -(-num_rows // step) * step


def choose_row_counts(needed: Sequence[int], most: int) -> tuple[int, ...]:
    """Ascending row counts for batches that need these numbers of rows.

    There are as few as leave at most SPARE_ROWS of all rows unused, and never more than `most`. Of all choices of so
    many it is the one that leaves the fewest rows unused (dynamic programming over the distinct needs).
    """
    needs, times = np.unique(np.asarray(needed, np.int64), return_counts=True)
    before = np.concatenate([[0], np.cumsum(times)])  # batches with a smaller need
    # rows[j] = fewest rows of the batches with the first j needs; chosen[j] = the counts that reach it
    rows, chosen = np.where(np.arange(len(needs) + 1), np.inf, 0.0), [()] * (len(needs) + 1)
    for _ in range(most):
        costs = [rows[:j] + needs[j - 1] * (before[j] - before[:j]) for j in range(1, len(needs) + 1)]
        starts = [int(np.argmin(cost)) for cost in costs]
        chosen = [()] + [(*chosen[start], int(needs[j])) for j, start in enumerate(starts)]
        rows = np.array([np.inf] + [cost[start] for cost, start in zip(costs, starts)])
        if rows[-1] <= (1 + SPARE_ROWS) * (needs * times).sum():
            break
    return chosen[-1]


def pack_rows(lengths: np.ndarray, row_length: int, segments_per_row: int) -> Placement:
    """Places texts of the given lengths [T] by best-fit decreasing; a pure function of its arguments.

    Each text, longest first, goes to the row with the least room that still holds it. Open rows are kept by the room
    they have left, and a bit mask says which amounts of room exist, so finding the row is one shift and one low bit.

    Raises:
      ValueError: a text is longer than a row.
    """
    lengths = np.asarray(lengths)
    num_texts = lengths.size
    if num_texts and lengths.max() > row_length:
        raise ValueError(f"a text of {lengths.max()} tokens does not fit in a row: row_length={row_length}")
    order = np.argsort(-lengths, kind="stable")
    rows, segments, starts = (np.zeros(num_texts, np.int32) for _ in range(3))
    placed_rows, placed_segments, placed_starts, row_segments = [], [], [], []
    rows_by_room = [[] for _ in range(row_length + 1)]
    rooms = 0  # bit i is set if rows_by_room[i] is not empty
    for length in lengths[order].tolist():
        if length == 0:
            break
        candidates = rooms >> length
        if candidates:
            room = length + (candidates & -candidates).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms ^= 1 << room
            row_segments[row] += 1
        else:
            room, row = row_length, len(row_segments)
            row_segments.append(1)
        placed_rows.append(row)
        placed_segments.append(row_segments[row])
        placed_starts.append(row_length - room)
        room -= length
        if room and row_segments[row] < segments_per_row:
            rows_by_room[room].append(row)
            rooms |= 1 << room
    placed = order[: len(placed_rows)]
    rows[placed], segments[placed], starts[placed] = placed_rows, placed_segments, placed_starts
    return Placement(rows, segments, starts, len(row_segments))


def pack_blocks(
    tokens: np.ndarray,  # [tokens] integer, the texts one after the other, block by block
    lengths: np.ndarray,  # [P, T] integer, 0 = empty slot
    text_ids: np.ndarray,  # [P, T] uint64, 0 = empty slot
    row_length: int,
    pad_id: int,
    num_rows: int | None = None,  # rows per block; None: the row count that holds the fullest block
    row_counts: Sequence[int] = (),
) -> tuple[PackedTexts, int]:
    """Packs P blocks of T texts each; returns them and the rows that the fullest block needed.

    Raises:
      ValueError: a text is longer than a row; the fullest block needs more than num_rows rows.
    """
    placements = [pack_rows(block, row_length, max_segments(row_length)) for block in lengths]
    rows_needed = max((placement.num_rows for placement in placements), default=0)
    if num_rows is None:
        num_rows = row_count(rows_needed, row_counts)
    if rows_needed > num_rows:
        raise ValueError(f"the texts of a block need {rows_needed} rows of {row_length} tokens: num_rows={num_rows}")
    rows, segments, starts = (np.stack(field) for field in list(zip(*placements))[:3])  # [P, T] each
    return fill_blocks(tokens, lengths, text_ids, rows, segments, starts, row_length, num_rows, pad_id), rows_needed


def fill_blocks(
    tokens: np.ndarray,  # [tokens] integer, the texts one after the other, block by block
    lengths: np.ndarray,  # [P, T] integer, 0 = empty slot
    text_ids: np.ndarray,  # [P, T] uint64, 0 = empty slot
    rows: np.ndarray,  # [P, T] int32, where pack_rows put each text
    segments: np.ndarray,  # [P, T] int32
    starts: np.ndarray,  # [P, T] int32
    row_length: int,
    num_rows: int,
    pad_id: int,
) -> PackedTexts:
    """Writes the texts of P blocks into their rows."""
    shape = (len(lengths), num_rows, row_length)
    first_rows = np.arange(len(lengths))[:, None] * num_rows  # [P, 1]
    text_cells = (first_rows + rows) * row_length + starts  # [P, T], the flat cell of each text's first token
    flat_lengths = lengths.reshape(-1)
    text_offsets = np.cumsum(flat_lengths) - flat_lengths  # [P * T]
    token_positions = np.arange(len(tokens)) - np.repeat(text_offsets, flat_lengths)  # [tokens]
    cells = np.repeat(text_cells.reshape(-1), flat_lengths) + token_positions  # [tokens]

    def scatter(values: np.ndarray, unused: int) -> np.ndarray:
        filled = np.full(shape, unused, np.int32)
        filled.reshape(-1)[cells] = values
        return filled

    return PackedTexts(
        tokens=scatter(tokens, pad_id),
        segments=scatter(np.repeat(segments.reshape(-1), flat_lengths), 0),
        positions=scatter(token_positions, 0),
        text_rows=rows,
        text_segments=segments,
        text_ids=split_text_ids(text_ids),
    )


def with_rows(packed: PackedTexts, num_rows: int, pad_id: int) -> PackedTexts:
    """The same texts in blocks of num_rows rows: unused rows are added, or taken off, at the end of each block.

    Raises:
      ValueError: a text lies in a row that would be taken off.
    """
    current = packed.tokens.shape[1]
    if num_rows <= current:
        if packed.segments[:, num_rows:].any():
            raise ValueError(f"the texts of a block use rows beyond num_rows={num_rows}: it has {current}")
        return packed._replace(
            tokens=packed.tokens[:, :num_rows],
            segments=packed.segments[:, :num_rows],
            positions=packed.positions[:, :num_rows],
        )
    padding = ((0, 0), (0, num_rows - current), (0, 0))
    return packed._replace(
        tokens=np.pad(packed.tokens, padding, constant_values=pad_id),
        segments=np.pad(packed.segments, padding),
        positions=np.pad(packed.positions, padding),
    )


def split_text_ids(text_ids: np.ndarray) -> np.ndarray:
    """uint64 ids [...] -> uint32 (low, high) [..., 2]: jax has no 64-bit integers by default."""
    return np.stack([text_ids & np.uint64(0xFFFFFFFF), text_ids >> np.uint64(32)], axis=-1).astype(np.uint32)
