"""Texts of any length -> calls of few fixed shapes: sorted by length, packed into rows, rows gathered into calls.

Each shape (R, L) is one compiled program, so there are few: L is a power of two, and R L is the same for every full
call. Texts that do not fill a call wait for more of their length; those that are left in the end go into longer rows.

Legend: P packing blocks, one per device; R rows per block, L tokens per row, S the most texts per row, T = R S slots
for texts per block.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data.packing import PackedTexts, Placement, fill_blocks, max_segments, pack_rows

SHORTEST_ROW = 64


class Call(NamedTuple):
    """One call of the encoder: texts packed into P blocks, and which text each slot is."""

    packed: PackedTexts  # tokens [P, R, L]
    text_indices: np.ndarray  # [P, T] int64, -1 = empty slot


class Waiting(NamedTuple):
    """Texts that no call has taken yet."""

    indices: np.ndarray  # [n] int64
    texts: list[np.ndarray]  # n arrays of token ids, special tokens included


def row_lengths(max_length: int) -> list[int]:
    """The row lengths for texts of at most max_length tokens: powers of two."""
    lengths = [SHORTEST_ROW]
    while lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return lengths


def make_calls(
    windows: Iterable[list[np.ndarray]], max_length: int, batch_tokens: int, num_devices: int, pad_id: int
) -> Iterator[Call]:
    """Packs every text of the windows (lists of token arrays, numbered on from one to the next) into calls.

    A text goes to the shortest rows that are twice as long as itself: two such texts or more fill a row well, and
    attention costs more in longer rows. Texts longer than half the longest row go there too.
    """
    lengths = row_lengths(max_length)
    waiting = {length: Waiting(np.zeros(0, np.int64), []) for length in lengths}
    first = 0
    for window in windows:
        sizes = np.array([len(text) for text in window])
        bucket = np.searchsorted(np.array(lengths[:-1]), 2 * sizes)  # the last for all that are longer
        for number, length in enumerate(lengths):
            members = np.flatnonzero(bucket == number)
            joined = _join(waiting[length], Waiting(first + members, [window[member] for member in members]))
            waiting[length] = yield from _full_calls(joined, length, batch_tokens, num_devices, pad_id)
        first += len(window)
    rest = Waiting(np.zeros(0, np.int64), [])
    for length in lengths:
        joined = _join(rest, waiting[length])
        rest = yield from _full_calls(joined, length, batch_tokens, num_devices, pad_id)
    if rest.texts:
        yield _last_call(rest, lengths, num_devices, pad_id)


def _join(first: Waiting, second: Waiting) -> Waiting:
    return Waiting(np.concatenate([first.indices, second.indices]), first.texts + second.texts)


def _full_calls(texts: Waiting, row_length: int, batch_tokens: int, num_devices: int, pad_id: int):
    """Yields the calls that the texts fill; returns the texts of the rows that are left."""
    rows_per_device = max(1, batch_tokens // row_length)
    rows_per_call = rows_per_device * num_devices
    sizes = np.array([len(text) for text in texts.texts], np.int64)
    if sizes.sum() <= (rows_per_call - 1) * row_length:  # too few for one call
        return texts
    placement = pack_rows(sizes, row_length, max_segments(row_length))
    call_of_text = placement.rows // rows_per_call
    num_calls = placement.num_rows // rows_per_call
    for call in range(num_calls):
        members = np.flatnonzero(call_of_text == call)
        yield _fill(texts, placement, members, call * rows_per_call, rows_per_device, num_devices, row_length, pad_id)
    left = np.flatnonzero(call_of_text == num_calls)
    return Waiting(texts.indices[left], [texts.texts[member] for member in left])


def _last_call(texts: Waiting, lengths: list[int], num_devices: int, pad_id: int) -> Call:
    """The texts that are left in the end, in the shortest rows that hold them. R is a power of two."""
    sizes = np.array([len(text) for text in texts.texts], np.int64)
    row_length = next(length for length in lengths if length >= sizes.max())
    placement = pack_rows(sizes, row_length, max_segments(row_length))
    rows_per_device = 1 << (-(-placement.num_rows // num_devices) - 1).bit_length()
    return _fill(texts, placement, np.arange(sizes.size), 0, rows_per_device, num_devices, row_length, pad_id)


def _fill(
    texts: Waiting,
    placement: Placement,
    members: np.ndarray,  # [n] texts of this call
    first_row: int,
    rows_per_device: int,
    num_devices: int,
    row_length: int,
    pad_id: int,
) -> Call:
    """The members, which lie in the P * R rows from first_row on, as one call."""
    shape = (num_devices, rows_per_device * max_segments(row_length))  # [P, T]
    device, row = np.divmod(placement.rows[members] - first_row, rows_per_device)
    members, device, row = (array[np.argsort(device, kind="stable")] for array in (members, device, row))
    slot = np.arange(members.size) - np.searchsorted(device, device)  # number of the text on its device

    def in_slots(values: np.ndarray, empty: int = 0) -> np.ndarray:
        slots = np.full(shape, empty, values.dtype)
        slots[device, slot] = values
        return slots

    tokens = [texts.texts[member] for member in members]
    packed = fill_blocks(
        np.concatenate(tokens),
        in_slots(np.array([len(text) for text in tokens], np.int64)),
        np.zeros(shape, np.uint64),
        in_slots(row.astype(np.int32)),
        in_slots(placement.segments[members]),
        in_slots(placement.starts[members]),
        row_length,
        rows_per_device,
        pad_id,
    )
    return Call(packed, in_slots(texts.indices[members], -1))
