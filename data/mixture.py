"""The mixture: which example stands in which slot of which global batch, a pure function of (seed, step).

Legend: B examples in the global batch, b planned here, P packing blocks in the global batch, p of this process,
m = B / P examples per block, n examples of a dataset.

Slots are numbered from 0 without end and come in *cycles*. If the weights add up to at most 65,536, a cycle has that
many slots and holds each dataset exactly `weight` times. If they add up to more, a cycle has 65,536 slots, and the
slots before it hold each dataset in proportion to its weight, to within one or two draws (see `draws_before`). In both
cases the slots are shuffled anew for each cycle, and time and memory do not depend on the sum of the weights.

The k-th draw of a dataset (from 0) belongs to its epoch k // n. An epoch visits every example once, in its own order.
Only one cycle is ever shuffled in memory, so a billion pairs need no start-up time.

    unit "example"   slot g is one example, number g % B of global batch g // B
    unit "dataset"   slot g is the whole global batch g: draws k * B .. k * B + B - 1 of one dataset

All packing blocks have as many rows as the fullest one needs. So the examples of a batch are dealt to the blocks like
cards, dataset by dataset, and each block gets nearly the same share of each dataset.

Random numbers come from SplitMix64, which computes word i of a stream from i only, and permutations are built on it
here: numpy.random may change its distributions with its version, but the order of examples must not change.
"""

import functools
import hashlib
import heapq
import json
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

CHOICES_PER_EXAMPLE = 4
FEISTEL_ROUNDS = 4
LONGEST_CYCLE = 1 << 16  # slots
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


class Mixture(NamedTuple):
    """Weighted datasets and how batches are made of them."""

    names: tuple[str, ...]  # in the order in which they are dealt; neighbours should have texts of similar length
    weights: tuple[int, ...]  # positive
    sizes: tuple[int, ...]  # examples, positive
    unit: Literal["example", "dataset"]
    global_batch_size: int
    packing_blocks: int
    seed: int


class Plan(NamedTuple):
    """The examples of some packing blocks of one global batch, block by block: p * m of them."""

    datasets: np.ndarray  # [p * m] int64, index in Mixture.names
    indices: np.ndarray  # [p * m] int64, example in its dataset
    choices: np.ndarray  # [p * m, 4] uint64, random words for choices inside the example


def read_data_config(path: str | os.PathLike) -> dict[str, int]:
    """Weights by dataset name, from a JSON list of {"name": "dir/file.jsonl.gz", "weight": int, ...}.

    Raises:
      ValueError: not such a list, an empty list, a name that occurs twice, a weight that is not a positive integer.
    """
    with open(path, encoding="utf-8") as file:
        try:
            entries = json.load(file)
        except ValueError as error:  # JSON or UTF-8
            raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: must be a JSON list of one or more {{"name": ..., "weight": ...}}')
    weights = {}
    for number, entry in enumerate(entries, start=1):
        name, weight = (entry.get("name"), entry.get("weight")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not name:
            raise ValueError(f'{path}: entry {number}: no "name": {json.dumps(entry)[:200]}')
        if type(weight) is float and weight.is_integer():
            weight = int(weight)  # 1e8
        if type(weight) is not int or weight <= 0:
            raise ValueError(
                f'{path}: entry {number} ({name}): "weight" must be a positive integer, not {json.dumps(weight)}; '
                "to leave the dataset out, remove its entry"
            )
        if name in weights:
            raise ValueError(f"{path}: entry {number}: {name} is listed twice")
        weights[name] = weight
    return weights


def plan_step(mixture: Mixture, step: int, blocks: Sequence[int]) -> Plan:
    """Plans the p packing blocks of global batch `step` that `blocks` numbers."""
    batch_size = mixture.global_batch_size
    if mixture.unit == "example":
        datasets, draws = draw_slots(mixture.seed, mixture.weights, step * batch_size, batch_size)
    else:
        dataset, batch = draw_slots(mixture.seed, mixture.weights, step, 1)
        datasets, draws = np.repeat(dataset, batch_size), batch * batch_size + np.arange(batch_size)
    dealt = np.argsort(datasets, kind="stable").reshape(-1, mixture.packing_blocks)  # [m, P]
    here = dealt[:, list(blocks)].T.reshape(-1)  # [p * m]
    datasets, draws = datasets[here].astype(np.int64), draws[here]
    words = (step * batch_size + here)[:, None] * CHOICES_PER_EXAMPLE + np.arange(CHOICES_PER_EXAMPLE)
    return Plan(datasets, draw_examples(mixture, datasets, draws), random_words(stream(mixture.seed, "choices"), words))


def draw_slots(seed: int, weights: tuple[int, ...], first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots first .. first + count - 1 -> (dataset [count], index of the draw within its dataset [count] int64)."""
    cycle = cycle_length(weights)
    first_cycle, last_cycle = first // cycle, (first + count - 1) // cycle
    datasets, draws = shuffle_cycles(seed, weights, first_cycle, last_cycle - first_cycle + 1)
    here = slice(first - first_cycle * cycle, first - first_cycle * cycle + count)
    return datasets[here], draws[here]


def cycle_length(weights: tuple[int, ...]) -> int:
    """The slots per cycle."""
    return min(sum(weights), LONGEST_CYCLE)


@functools.lru_cache(maxsize=4)  # neighbouring steps share a cycle if it is longer than a batch
def shuffle_cycles(
    seed: int, weights: tuple[int, ...], first_cycle: int, num_cycles: int
) -> tuple[np.ndarray, np.ndarray]:
    """The slots of whole cycles: (dataset [slots] uint16 or uint32, draw [slots] int64)."""
    cycle = cycle_length(weights)
    # A cycle is put in the order of random keys, whose low bits carry the number of the item and so make them unique.
    item_bits = np.uint64((1 << (cycle - 1).bit_length()) - 1)
    slots = np.arange(first_cycle * cycle, (first_cycle + num_cycles) * cycle).reshape(num_cycles, cycle)
    keys = random_words(stream(seed, "cycles"), slots)
    keys = np.sort((keys & ~item_bits) | np.arange(cycle, dtype=np.uint64), axis=1)
    before = draws_before(weights, first_cycle, num_cycles + 1)  # [cycles + 1, datasets]
    counts = np.diff(before, axis=0)  # [cycles, datasets]
    small = np.uint16 if len(weights) < 1 << 16 else np.uint32  # uint16 sorts in linear time
    in_order = np.tile(np.arange(len(weights), dtype=small), num_cycles)
    items = np.repeat(in_order, counts.reshape(-1)).reshape(num_cycles, cycle)
    datasets = np.take_along_axis(items, (keys & item_bits).astype(np.int64), axis=1)  # [cycles, slots of a cycle]
    # In order of dataset and then slot, item j of a cycle is draw number j - (items of the datasets before its own).
    by_dataset = np.argsort(datasets, axis=1, kind="stable")
    first_draws = before[:-1] - (np.cumsum(counts, axis=1) - counts)  # [cycles, datasets]
    sorted_draws = np.arange(cycle) + np.repeat(first_draws.reshape(-1), counts.reshape(-1)).reshape(num_cycles, cycle)
    draws = np.empty_like(sorted_draws)
    np.put_along_axis(draws, by_dataset, sorted_draws, axis=1)
    return datasets.reshape(-1), draws.reshape(-1)


def draws_before(weights: tuple[int, ...], first_cycle: int, count: int) -> np.ndarray:
    """[count, datasets] int64: the draws of each dataset before cycles first_cycle .. first_cycle + count - 1."""
    if sum(weights) <= LONGEST_CYCLE:
        return np.arange(first_cycle, first_cycle + count)[:, None] * np.asarray(weights, np.int64)
    return np.array([
        split_slots(weights, cycle * LONGEST_CYCLE) for cycle in range(first_cycle, first_cycle + count)], np.int64)


def split_slots(weights: tuple[int, ...], num_slots: int) -> list[int]:
    """How many of the first num_slots slots each dataset gets, in exact integers; they add up to num_slots.

    The slots go down a binary tree: each node splits what it gets between its two children, by their weights and
    rounded to nearest. Each child's count never falls as its node's count grows, so a dataset's count never falls as
    num_slots grows. In a Huffman tree a child that splits again has at most two thirds of its node's weight, so that
    rounding errors fade on the way down: a count is within 2 of its exact share, and mostly within 1.
    """
    totals, children = split_tree(weights)
    counts = [0] * len(totals)
    counts[-1] = num_slots
    for node in reversed(range(len(weights), len(totals))):
        left, right = children[node - len(weights)]
        counts[left] = (2 * counts[node] * totals[left] + totals[node]) // (2 * totals[node])
        counts[right] = counts[node] - counts[left]
    return counts[: len(weights)]


@functools.lru_cache(maxsize=4)
def split_tree(weights: tuple[int, ...]) -> tuple[list[int], list[tuple[int, int]]]:
    """The Huffman tree over the datasets: (weight of each node, children of the inner nodes); the root comes last."""
    totals, children = list(weights), []
    heap = [(weight, node) for node, weight in enumerate(weights)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (left_weight, left), (right_weight, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (left_weight + right_weight, len(totals)))
        totals.append(left_weight + right_weight)
        children.append((left, right))
    return totals, children


def draw_examples(mixture: Mixture, datasets: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draws [b] of datasets [b] -> examples [b]: every n draws of a dataset are an epoch with its own order."""
    sizes = np.asarray(mixture.sizes, np.int64)[datasets]
    epochs, positions = np.divmod(draws, sizes)
    seeds = random_words(dataset_streams(mixture.seed, mixture.names)[datasets], epochs)
    return permute(positions, sizes, seeds)


@functools.lru_cache(maxsize=4)
def dataset_streams(seed: int, names: tuple[str, ...]) -> np.ndarray:
    """[datasets] uint64, derived from the name only, so that other datasets do not change the order of this one."""
    return np.array([stream(seed, f"dataset {name}") for name in names])


def permute(positions: np.ndarray, sizes: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Images [b] of positions [b] under pseudo-random permutations of 0 .. sizes[b] - 1, chosen by seeds [b] uint64.

    A Feistel network over the cells of a grid of about sqrt(n) x sqrt(n): each half round moves every cell along its
    row, or its column, by a hash of the other coordinate, which is a bijection of the grid. An image outside 0 .. n-1
    walks on through the network until it is inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    grain.experimental.index_shuffle does the same for one index at a time in a domain of at least 2^16: 2 us an index,
    20 us if n = 1,000, 3 ms if n = 5. This one takes 0.1 us.
    """
    sizes = sizes.astype(np.uint64)
    columns = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    rows = (sizes + columns - np.uint64(1)) // columns  # columns * rows >= n, by less than one row
    images = positions.astype(np.uint64)
    outside = np.arange(len(images))
    while outside.size:
        row, column = np.divmod(images[outside], columns[outside])
        for half_round in range(0, 2 * FEISTEL_ROUNDS, 2):
            keys = seeds[outside] + np.uint64(half_round)
            row = (row + hash_words(column, keys)) % rows[outside]
            column = (column + hash_words(row, keys + np.uint64(1))) % columns[outside]
        images[outside] = row * columns[outside] + column
        outside = outside[images[outside] >= sizes[outside]]
    return images.astype(np.int64)


def hash_words(words: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Hashes words [b] under keys [b] to 63 bits, which leaves room for the sum with a coordinate."""
    return mix_words(words ^ mix_words(keys)) >> np.uint64(1)


def stream(seed: int, purpose: str) -> np.uint64:
    """The state from which the random words for one purpose start."""
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}\n{purpose}".encode(), digest_size=8).digest(), "little"))


def random_words(start: np.uint64 | np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The words of these numbers (from 0) of the SplitMix64 generators that start from these states: uint64."""
    return mix_words(start + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def mix_words(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a bijection of 64-bit words (Steele, Lea and Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
