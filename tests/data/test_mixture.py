"""The mixture against a slow simulation that counts in dictionaries."""

import collections
import fractions
import json
import random
import time
import tracemalloc

import numpy as np
import pytest

from data.mixture import (
    LONGEST_CYCLE,
    Mixture,
    draw_slots,
    permute,
    plan_step,
    random_words,
    read_data_config,
    split_slots,
    stream,
)


def make_mixture(weights=(3, 1, 2), sizes=(10, 7, 100), unit="example", batch=8, blocks=2, seed=5):
    names = tuple(f"set{i}.jsonl.gz" for i in range(len(weights)))
    return Mixture(names, tuple(weights), tuple(sizes), unit, batch, blocks, seed)


def all_examples(mixture, num_steps):
    plans = [plan_step(mixture, step, range(mixture.packing_blocks)) for step in range(num_steps)]
    return np.concatenate([plan.datasets for plan in plans]), np.concatenate([plan.indices for plan in plans])


def test_a_batch_holds_its_slots():
    """The examples of a batch are those of its slots, whatever block they are dealt to, and their choices go along."""
    weights, sizes = (3, 1, 2), (10, 7, 100)
    for step in range(5):
        batches = []
        for blocks in (1, 2, 8):
            plan = plan_step(make_mixture(weights, sizes, batch=16, blocks=blocks), step, range(blocks))
            batches.append(sorted(zip(plan.datasets.tolist(), plan.indices.tolist(), plan.choices.tolist())))
        assert batches[0] == batches[1] == batches[2]
        datasets, _ = draw_slots(5, weights, step * 16, 16)
        assert sorted(datasets.tolist()) == [dataset for dataset, _, _ in batches[0]]


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_blocks_share_each_dataset_evenly(blocks):
    mixture = make_mixture(weights=(5, 3, 1, 4), sizes=(50,) * 4, batch=48, blocks=blocks)
    for step in range(10):
        datasets = plan_step(mixture, step, range(blocks)).datasets.reshape(blocks, -1)
        counts = np.stack([(datasets == dataset).sum(axis=1) for dataset in range(4)])
        assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


@pytest.mark.parametrize("seed", range(6))
def test_each_cycle_holds_each_dataset_weight_times(seed):
    random = np.random.default_rng(seed)
    weights = tuple(random.integers(1, 20, int(random.integers(1, 9))).tolist())
    cycle = sum(weights)
    datasets, draws = draw_slots(seed, weights, 0, 7 * cycle)
    seen = collections.Counter()
    orders = set()
    for number in range(7):
        here = datasets[number * cycle : (number + 1) * cycle].tolist()
        assert collections.Counter(here) == dict(enumerate(weights))
        orders.add(tuple(here))
        for dataset, draw in zip(here, draws[number * cycle : (number + 1) * cycle].tolist()):
            assert draw == seen[dataset], "the k-th slot of a dataset is its k-th draw"
            seen[dataset] += 1
    assert len(weights) == 1 or len(orders) > 1, "each cycle has its own order"


LARGE_WEIGHTS = [
    (3_000_000_000, 100_000_000, 7), (1, LONGEST_CYCLE), (10**30, 10**29, 10**9), (10**9,) * 290,
    tuple(2**power for power in range(40)), (5 * 10**9,),
]


@pytest.mark.parametrize("weights", LARGE_WEIGHTS)
def test_large_weights_get_their_shares(weights):
    """Before each cycle a dataset has had its share of all slots, to within two draws, and never fewer than before."""
    total, before = sum(weights), [0] * len(weights)
    cycles = [*range(300), *range(10**6, 10**6 + 50), 10**9]
    for cycle in cycles:
        counts = split_slots(weights, cycle * LONGEST_CYCLE)
        assert sum(counts) == cycle * LONGEST_CYCLE
        for count, weight, earlier in zip(counts, weights, before):
            assert abs(count - fractions.Fraction(cycle * LONGEST_CYCLE * weight, total)) < 2
            assert count >= earlier
        before = counts


def test_split_slots_is_monotone_slot_by_slot():
    generator = random.Random(3)
    for _ in range(20):
        weights = tuple(generator.choice([1, 7, 10**9]) * generator.randrange(1, 50) for _ in range(12))
        counts = np.array([split_slots(weights, slots) for slots in range(500)])
        assert set(np.diff(counts, axis=0).reshape(-1).tolist()) <= {0, 1}
        assert (np.diff(counts, axis=0).sum(axis=1) == 1).all()
        assert split_slots(weights, 3 * sum(weights)) == [3 * weight for weight in weights]


@pytest.mark.parametrize("weights", [(3_000_000_000, 100_000_000, 7), (60_000, 50_000, 3), (10**9,) * 290])
def test_draws_of_large_weights_are_numbered_without_gaps(weights):
    """From the first slot on the k-th slot of a dataset is its k-th draw; any later range of slots is a slice."""
    count = 3 * LONGEST_CYCLE + 100
    datasets, draws = draw_slots(9, weights, 0, count)
    for dataset in range(len(weights)):
        mine = draws[datasets == dataset]
        assert np.array_equal(mine, np.arange(len(mine)))
    for first in (0, LONGEST_CYCLE - 5, 2 * LONGEST_CYCLE + 17):
        for found, expected in zip(draw_slots(9, weights, first, 90), (datasets, draws)):
            assert np.array_equal(found, expected[first : first + 90])


def test_weights_with_a_common_factor_have_equal_shares_whatever_its_size():
    small, large = (np.bincount(draw_slots(1, weights, 0, 10 * LONGEST_CYCLE)[0], minlength=3)
                    for weights in ((5, 3, 1), (5 * 10**9, 3 * 10**9, 10**9)))
    assert (np.abs(small - large) <= 5).all()


def test_epochs_of_large_weights_show_every_example_once():
    mixture = make_mixture(weights=(3_000_000_000, 100_000_000), sizes=(1000, 50), batch=4096, blocks=8)
    datasets, indices = all_examples(mixture, 64)
    for dataset, size in enumerate(mixture.sizes):
        drawn = indices[datasets == dataset]
        epochs = drawn[: len(drawn) // size * size]
        counts = np.bincount(epochs, minlength=size)
        assert len(epochs) > 100 * size and counts.max() - counts.min() <= 8  # batches deal their slots to blocks


def test_time_and_memory_do_not_depend_on_the_weights():
    mixture = make_mixture(weights=(3_000_000_000, 100_000_000, 7), sizes=(10**9, 10**8, 7), batch=1024, blocks=8)
    tracemalloc.start()
    start = time.thread_time()
    plan = plan_step(mixture, 1_000_000, range(8))
    assert time.thread_time() - start < 0.5  # about 0.02
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    hosts = [plan_step(mixture, 1_000_000, range(4 * host, 4 * host + 4)) for host in range(2)]
    for field, parts in zip(plan, zip(*hosts)):
        assert np.array_equal(field, np.concatenate(parts))


def test_the_order_of_small_weights_is_fixed():
    """Golden values: a change of these is a change of the order of examples."""
    datasets, draws = draw_slots(5, (3, 1, 2), 0, 12)
    assert datasets.tolist() == [0, 0, 2, 0, 2, 1, 0, 2, 1, 0, 0, 2]
    assert draws.tolist() == [0, 1, 0, 2, 1, 0, 3, 2, 1, 4, 5, 3]


@pytest.mark.parametrize("seed", range(6))
def test_any_range_of_slots_is_a_slice(seed):
    random = np.random.default_rng(10 + seed)
    weights = tuple(random.integers(1, 30, 5).tolist())
    datasets, draws = draw_slots(seed, weights, 0, 1000)
    for _ in range(20):
        first = int(random.integers(0, 900))
        count = int(random.integers(1, 100))
        part_datasets, part_draws = draw_slots(seed, weights, first, count)
        assert np.array_equal(part_datasets, datasets[first : first + count])
        assert np.array_equal(part_draws, draws[first : first + count])


def test_every_epoch_shows_every_example_once():
    mixture = make_mixture(batch=6, blocks=1)  # a batch is a cycle: 3, 1 and 2 examples of the datasets
    datasets, indices = all_examples(mixture, 100)
    for dataset, (size, weight) in enumerate(zip(mixture.sizes, mixture.weights)):
        drawn = indices[datasets == dataset]
        steps_per_epoch = np.lcm(size, weight) // weight
        several = drawn[: len(drawn) // (steps_per_epoch * weight) * (steps_per_epoch * weight)]
        assert len(several) >= size, "the test must see a whole epoch"
        epochs_at_once = steps_per_epoch * weight // size
        for part in several.reshape(-1, steps_per_epoch * weight):
            assert sorted(part.tolist()) == sorted(list(range(size)) * epochs_at_once)


def test_epochs_are_permutations_in_orders_of_their_own():
    for size in (7, 10, 64):
        mixture = make_mixture(weights=(1,), sizes=(size,), batch=size, blocks=1)
        epochs = all_examples(mixture, 12)[1].reshape(12, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 12


def test_one_dataset_a_batch():
    mixture = make_mixture(unit="dataset", sizes=(8, 16, 24))
    datasets, indices = all_examples(mixture, 36)
    batches = datasets.reshape(36, 8)
    assert (batches == batches[:, :1]).all()
    assert collections.Counter(batches[:, 0].tolist()) == {0: 18, 1: 6, 2: 12}
    for dataset, size in enumerate(mixture.sizes):
        epochs = indices[datasets == dataset].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()


@pytest.mark.parametrize("unit", ["example", "dataset"])
def test_hosts_plan_slices_of_the_global_batch(unit):
    mixture = make_mixture(unit=unit, batch=24, blocks=8)
    for step in (0, 3, 1000):
        whole = plan_step(mixture, step, range(8))
        for hosts in (2, 4, 8):
            parts = [plan_step(mixture, step, np.arange(8).reshape(hosts, -1)[host]) for host in range(hosts)]
            for field, pieces in zip(whole, zip(*parts)):
                assert np.array_equal(field, np.concatenate(pieces))


def test_the_seed_and_the_other_datasets():
    first, second = (all_examples(make_mixture(batch=6, blocks=1, seed=seed), 30) for seed in (5, 6))
    assert not np.array_equal(first[1], second[1])
    # The order of a dataset's own examples does not depend on what else is in the mixture.
    alone = make_mixture(weights=(1,), sizes=(10,), batch=3, blocks=1)
    assert np.array_equal(np.sort(all_examples(alone, 30)[1].reshape(30, 3), axis=1),
                          np.sort(first[1][first[0] == 0].reshape(30, 3), axis=1))


def test_choices_depend_on_seed_and_slot_alone():
    def choices(num_steps, **options):
        mixture = make_mixture(weights=(1,), sizes=(5,), blocks=1, **options)  # one dataset: dealt in order
        return np.concatenate([plan_step(mixture, step, [0]).choices for step in range(num_steps)])

    words = choices(4, batch=8)
    assert np.array_equal(words, choices(2, batch=16, unit="dataset"))
    assert len(np.unique(words)) == words.size
    assert not np.array_equal(words, choices(4, batch=8, seed=6))


def test_random_words_are_split_mix_64():
    """The generator as its authors give it: a counter and a mixer, one word after the other."""
    state, expected = 1234567, []
    for _ in range(50):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        word = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        expected.append(word ^ word >> 31)
    assert expected[0] == 6457827717110365317  # the published test vector of seed 1234567
    assert random_words(np.uint64(1234567), np.arange(50)).tolist() == expected
    assert len({int(stream(seed, purpose)) for seed in range(3) for purpose in ("choices", "cycles")}) == 6


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 97, 1000, 65537])
def test_permute_is_a_bijection_for_every_seed(size):
    for seed in np.random.default_rng(size).integers(0, 2**64, 5, np.uint64):
        images = permute(np.arange(size), np.full(size, size), np.full(size, seed))
        assert np.array_equal(np.sort(images), np.arange(size))


def test_permute_is_uniform():
    """Small sets: every order about equally often. Larger ones: no trace of the order that went in."""
    seeds = np.random.default_rng(0).integers(0, 2**64, 4800, np.uint64)
    orders = permute(np.tile(np.arange(4), 4800), np.full(4 * 4800, 4), np.repeat(seeds, 4)).reshape(-1, 4)
    counts = np.array(list(collections.Counter(map(tuple, orders.tolist())).values()))
    assert len(counts) == 24 and ((counts - 200) ** 2 / 200).sum() < 50  # chi-squared, 23 degrees: p = 0.001
    images = permute(np.tile(np.arange(500), 400), np.full(200_000, 500), np.repeat(seeds[:400], 500)).reshape(400, 500)
    assert abs(np.corrcoef(images[:, :-1].reshape(-1), images[:, 1:].reshape(-1))[0, 1]) < 0.01
    assert abs(np.corrcoef(images.reshape(-1), np.tile(np.arange(500), 400))[0, 1]) < 0.01
    assert abs(np.corrcoef(images[:-1].reshape(-1), images[1:].reshape(-1))[0, 1]) < 0.01
    assert 0.8 < (images == np.arange(500)).sum(axis=1).mean() < 1.2  # fixed points of a random permutation


def test_a_large_mixture_is_planned_quickly():
    mixture = make_mixture(weights=(16,) * 290, sizes=(10**6,) * 290, batch=65536)
    plan_step(mixture, 0, [0, 1])
    start = time.thread_time()
    plan_step(mixture, 1, [0, 1])
    assert time.thread_time() - start < 0.5  # about 0.02 on one core


def write_config(folder, value):
    path = folder / "data_config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_read_data_config(tmp_path):
    entries = [{"name": "b/two.jsonl.gz", "lines": 9, "weight": 4}, {"name": "a.jsonl.gz", "lines": 5, "weight": 1}]
    assert read_data_config(write_config(tmp_path, entries)) == {"b/two.jsonl.gz": 4, "a.jsonl.gz": 1}
    weights = read_data_config(write_config(tmp_path, '[{"name": "a", "weight": 1e8}, {"name": "b", "weight": 3e9}]'))
    assert weights == {"a": 10**8, "b": 3 * 10**9} and set(map(type, weights.values())) == {int}


@pytest.mark.parametrize(("value", "message"), [
    ([], "one or more"),
    ({"name": "a", "weight": 1}, "must be a JSON list"),
    ("[{", "not JSON"),
    ([{"weight": 1}], 'entry 1: no "name"'),
    (["a"], 'entry 1: no "name"'),
    ([{"name": "a", "weight": 1}, {"name": "a", "weight": 2}], "entry 2: a is listed twice"),
    *(([{"name": "a", "weight": 1}, {"name": "b", "weight": weight}], f"entry 2 \\(b\\).*not {json.dumps(weight)}")
      for weight in (0, -3, 1.5, "7", True, float("inf"))),
    ([{"name": "b"}], r"entry 1 \(b\).*not null"),
])
def test_bad_data_config(tmp_path, value, message):
    path = write_config(tmp_path, value)
    with pytest.raises(ValueError, match=message) as error:
        read_data_config(path)
    assert str(path) in str(error.value)
