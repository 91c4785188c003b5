"""Packing against a slow model of itself, and against what a packing must be."""

import itertools

import numpy as np
import pytest

from data.packing import (
    PackedTexts,
    choose_row_counts,
    max_segments,
    pack_blocks,
    pack_rows,
    row_count,
    with_rows,
)
from tests.texts import pack_texts

PAD = 7


def random_lengths(random, num_texts, longest, empty_share=0.1):
    lengths = np.minimum(random.lognormal(3, 1, num_texts).astype(np.int64) + 1, longest)
    return np.where(random.random(num_texts) < empty_share, 0, lengths)


def slow_best_fit(lengths, row_length, segments_per_row):
    """Best-fit decreasing as it is told: look at every open row, take the one with the least room that is enough."""
    rooms, counts = [], []
    for length in sorted(lengths.tolist(), reverse=True):
        if length == 0:
            break
        fits = [row for row in range(len(rooms)) if rooms[row] >= length and counts[row] < segments_per_row]
        if not fits:
            rooms.append(row_length)
            counts.append(0)
            fits = [len(rooms) - 1]
        best = min(fits, key=lambda row: rooms[row])
        rooms[best] -= length
        counts[best] += 1
    return rooms


@pytest.mark.parametrize("seed", range(20))
def test_pack_rows_is_best_fit_decreasing(seed):
    random = np.random.default_rng(seed)
    row_length = int(random.integers(8, 300))
    lengths = random_lengths(random, int(random.integers(0, 200)), row_length)
    segments_per_row = 10**6 if seed % 2 else max_segments(row_length)
    placement = pack_rows(lengths, row_length, segments_per_row)
    used = np.bincount(placement.rows, lengths, minlength=placement.num_rows)
    if seed % 2:  # rows of equal room are interchangeable only where segments are not limited
        assert sorted(row_length - used) == sorted(slow_best_fit(lengths, row_length, segments_per_row))
    assert (used > 0).all() and (used <= row_length).all()
    again = pack_rows(lengths.copy(), row_length, segments_per_row)
    assert all(np.array_equal(*fields) for fields in zip(placement, again))


def unpack(packed: PackedTexts, block, slot):
    """The tokens and positions of one text, found through segments alone."""
    row, segment = packed.text_rows[block, slot], packed.text_segments[block, slot]
    here = packed.segments[block, row] == segment
    return packed.tokens[block, row][here], packed.positions[block, row][here], np.flatnonzero(here)


@pytest.mark.parametrize("seed", range(10))
def test_pack_blocks_holds_every_text_once(seed):
    random = np.random.default_rng(100 + seed)
    row_length, num_blocks, num_texts = int(random.integers(16, 260)), int(random.integers(1, 5)), 60
    lengths = random_lengths(random, num_blocks * num_texts, row_length).reshape(num_blocks, num_texts)
    texts = [random.integers(10, 30000, length) for length in lengths.reshape(-1)]
    ids = np.where(lengths > 0, random.integers(1, 2**64, lengths.shape, np.uint64), np.uint64(0))
    packed, rows_needed = pack_blocks(np.concatenate(texts), lengths, ids, row_length, PAD)
    assert packed.tokens.shape == (num_blocks, row_count(rows_needed), row_length)
    for block in range(num_blocks):
        for slot in range(num_texts):
            tokens, positions, cells = unpack(packed, block, slot)
            if lengths[block, slot] == 0:
                assert packed.text_segments[block, slot] == 0 and packed.text_rows[block, slot] == 0
                continue
            assert np.array_equal(tokens, texts[block * num_texts + slot])
            assert np.array_equal(positions, np.arange(len(tokens)))
            assert np.array_equal(cells, cells[0] + np.arange(len(tokens)))
        for row in packed.segments[block]:  # segments 1, 2, .. in order from the left, then nothing
            real = row[row > 0]
            assert np.array_equal(row[: len(real)], real) and (np.diff(real) >= 0).all()
            assert np.array_equal(np.unique(real), np.arange(1, len(np.unique(real)) + 1))
    unused = packed.segments == 0
    assert unused.sum() == unused.size - lengths.sum(), "tokens overlap, or some are not there"
    assert (packed.tokens[unused] == PAD).all() and (packed.positions[unused] == 0).all()
    assert packed.segments.max() <= max_segments(row_length)
    low, high = packed.text_ids[..., 0].astype(np.uint64), packed.text_ids[..., 1].astype(np.uint64)
    assert np.array_equal(low | high << np.uint64(32), ids)
    dtypes = {field.dtype for field in packed[:5]}
    assert dtypes == {np.dtype(np.int32)} and packed.text_ids.dtype == np.uint32


def test_blocks_are_packed_independently():
    random = np.random.default_rng(3)
    lengths = random_lengths(random, 90, 64, empty_share=0).reshape(3, 30)
    texts = [random.integers(10, 99, length) for length in lengths.reshape(-1)]
    together, rows_needed = pack_blocks(np.concatenate(texts), lengths, lengths.astype(np.uint64), 64, PAD)
    rows = together.tokens.shape[1]
    alone = [pack_texts(texts[30 * b : 30 * b + 30], lengths[b], 64, PAD, num_rows=rows) for b in range(3)]
    for field, parts in zip(together, zip(*alone)):
        assert np.array_equal(field, np.concatenate(parts))
    assert rows_needed == max(int(block.text_rows.max()) + 1 for block in alone)


def test_pack_texts_for_inference():
    texts = [np.array([2, 5, 3]), np.array([], np.int64), np.array([2, 3])]
    packed = pack_texts(texts, None, row_length=16, pad_id=PAD, num_rows=3)
    assert packed.tokens.shape == (1, 3, 16)
    assert packed.tokens[0, 0, :6].tolist() == [2, 5, 3, 2, 3, PAD]
    assert packed.text_segments.tolist() == [[1, 0, 2]]
    assert not packed.text_ids.any() and packed.text_ids.shape == (1, 3, 2)
    nothing = pack_texts([], None, row_length=16, pad_id=PAD)
    assert nothing.tokens.shape == (1, 1, 16) and nothing.text_rows.shape == (1, 0)


def test_errors_quote_both_values():
    with pytest.raises(ValueError, match=r"17 tokens .* row_length=16"):
        pack_texts([np.zeros(17, np.int32)], None, row_length=16, pad_id=PAD)
    with pytest.raises(ValueError, match=r"need 3 rows of 16 tokens: num_rows=2"):
        pack_texts([np.ones(16, np.int32)] * 3, None, row_length=16, pad_id=PAD, num_rows=2)


def test_row_counts_of_the_ladder():
    counts = np.array([row_count(n) for n in range(1, 5000)])
    assert (counts >= np.arange(1, 5000)).all() and (np.diff(counts) >= 0).all()
    assert all(row_count(int(count)) == count for count in counts), "a rung is its own rung"
    ladder = np.unique(counts)
    steps = np.diff(ladder)
    assert ((steps == 1) | (steps / ladder[:-1] <= 1 / 16)).all()
    assert ((ladder > 1024) & (ladder <= 2048)).sum() == 16
    assert row_count(0) == 1


def test_row_counts_that_were_chosen_come_before_the_ladder():
    assert [row_count(n, (30, 33)) for n in (1, 30, 31, 33, 34, 65)] == [30, 30, 33, 33, 34, 68]


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_chosen_row_counts_leave_the_fewest_rows_unused(most):
    """Against all choices; and no more of them than 2 % of spare rows allow."""
    random = np.random.default_rng(most)
    for _ in range(20):
        needed = random.integers(1, 1 + random.integers(1, 40), random.integers(1, 60))
        chosen = choose_row_counts(needed, most)
        values = np.unique(needed).tolist()
        of_count = [
            min(sum(row_count(int(n), counts) for n in needed) for counts in itertools.combinations(values, size)
                if counts[-1] == values[-1])
            for size in range(1, min(most, len(values)) + 1)
        ]
        enough = [rows <= 1.02 * needed.sum() for rows in of_count]
        size = enough.index(True) + 1 if any(enough) else len(of_count)
        assert len(chosen) == size and list(chosen) == sorted(chosen)
        assert sum(row_count(int(n), chosen) for n in needed) == of_count[size - 1]


def test_with_rows():
    packed = pack_texts([np.ones(16, np.int32)] * 3, np.arange(1, 4), row_length=16, pad_id=PAD)
    grown = with_rows(packed, 5, PAD)
    assert grown.tokens.shape == (1, 5, 16)
    assert (grown.tokens[:, 3:] == PAD).all() and not grown.segments[:, 3:].any() and not grown.positions[:, 3:].any()
    for field, expected in zip(with_rows(grown, 3, PAD), packed):
        assert np.array_equal(field, expected)
    with pytest.raises(ValueError, match="num_rows=2: it has 3"):
        with_rows(packed, 2, PAD)
