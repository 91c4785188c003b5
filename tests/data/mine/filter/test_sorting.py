"""Sorting on disk gives what sorting in memory gives, however little memory there is."""

import itertools

import numpy as np
import pytest

from data.mine.filter.sorting import KEYS, ROW_BYTES, Runs, merged, ranges, repeated, rows_in, runs_in

EDGES = np.array([0, 1, KEYS // 2 - 1, KEYS // 2, KEYS - 2, KEYS - 1], np.uint64)


def written(folder, keys, memory, parts=3):
    """The keys, with their places as values, as the runs of several folders."""
    folders = []
    for number, places in enumerate(np.array_split(np.arange(len(keys), dtype=np.uint64), parts)):
        folders.append(folder / str(number))
        folders[-1].mkdir()
        runs = Runs(folders[-1], "ids", memory)
        for piece in np.array_split(places, 4):
            runs.add(keys[piece], piece)
        runs.flush()
    return runs_in(folders, "ids")


def drawn(kind, count=80):
    rng = np.random.default_rng(0)
    return {"spread": rng.integers(0, KEYS, count, np.uint64, endpoint=False), "few": rng.choice(EDGES, count),
            "one": np.full(count, 7, np.uint64), "near": np.uint64(KEYS - 3) + rng.integers(0, 3, count, np.uint64),
            "none": np.zeros(0, np.uint64)}[kind]


@pytest.mark.parametrize("kind", ["spread", "few", "one", "near", "none"])
@pytest.mark.parametrize("rows", [3, 20, 10_000])
def test_merged_and_repeated(tmp_path, kind, rows):
    keys, memory = drawn(kind), rows * ROW_BYTES
    runs = written(tmp_path, keys, memory)
    assert rows_in(runs) == len(keys)
    order = np.argsort(keys, kind="stable")
    blocks = list(merged(runs, memory))
    assert all(0 < len(block.keys) <= rows for block in blocks)
    for column, expected in enumerate((keys[order], order)):
        found = np.concatenate([np.zeros(0, np.uint64), *(block[column] for block in blocks)])
        np.testing.assert_array_equal(found, expected.astype(np.uint64))
    first = {}
    expected = sorted((place, first[key]) for place, key in enumerate(keys.tolist()) if key in first
                      or first.setdefault(key, place) is None)
    for count in (1, 2, 5):
        found = [row for low, high in ranges(count) for block in repeated(runs, memory, low, high)
                 for row in zip(block.keys.tolist(), block.values.tolist())]
        assert sorted(found) == expected


def test_ranges_cover_all_keys():
    for count in (1, 3, 64):
        bounds = ranges(count)
        assert bounds[0][0] == 0 and bounds[-1][1] == KEYS
        assert all(high == low for (_, high), (low, _) in itertools.pairwise(bounds))
