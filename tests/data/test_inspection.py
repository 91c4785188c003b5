"""What inspection finds in folders written by hand: epochs, truncation, duplicates, samples, packed batches."""

import collections
import dataclasses

import numpy as np
import pytest

from data import inspection
from data.inspection import HashCounts, inspect_data
from data.loader import BatchSource, LoaderConfig
from data.settings import BatchSettings, DataSettings
from tests.data.test_prepare import run_prepare, write_lines, write_tokenizer

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "cow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Datasets a: 6 pairs, of which two are the same; b: 2 triplets; c.txt: 3 lines; d: 200 pairs of their own."""
    root = tmp_path_factory.mktemp("inspection")
    model = write_tokenizer(root / "model", [*WORDS, *(f"w{number}" for number in range(200))])
    write_lines(root / "source" / "a.jsonl", [
        ["one", "red cat"], ["one", "red dog"], ["two", "blue bird"], ["one", "red cat"], ["cat", "one two three"],
        ["three", "red red red red red"]])
    write_lines(root / "source" / "b.jsonl", [["one", "cow", "dog"], ["green", "red cat", "bird"]])
    write_lines(root / "source" / "c.txt", [b"one", b"blue", b"one"])
    write_lines(root / "source" / "d.jsonl", [[f"w{number} one", f"w{number} two"] for number in range(200)])
    (root / "config.json").write_text('[{"name": "a.jsonl", "weight": 3}, {"name": "b.jsonl", "weight": 1}, '
                                      '{"name": "c.txt", "weight": 2}, {"name": "d.jsonl", "weight": 2}]')
    run_prepare((root / "source", root / "out"), model, data_config=str(root / "config.json"))
    return root / "out"


def look(folder, most_read=0, num_samples=2, num_batches=3, num_steps=10, **batch):
    sizes = {"global_batch_size": 16, "packing_blocks": 2, "max_length": 5, "row_length": 16} | batch
    data = DataSettings(data_dir=str(folder), verify="size")
    return inspect_data(LoaderConfig(data, BatchSettings(**sizes), 0, num_steps), most_read, num_samples, num_batches)


def test_counts_probabilities_epochs_and_truncation(folder):
    views = {view.name: view for view in look(folder).datasets}
    assert [(view.examples, view.weight, view.probability) for view in views.values()] == [
        (6, 3, 3 / 8), (2, 1, 1 / 8), (3, 2, 2 / 8), (200, 2, 2 / 8)]
    assert [view.epochs for view in views.values()] == [
        160 * 3 / 8 / 6, 160 / 8 / 2, 160 * 2 / 8 / 3, 160 * 2 / 8 / 200]
    assert (views["a.jsonl"].texts, views["a.jsonl"].truncated_texts) == (12, 1)  # max_length 5 leaves 3 tokens
    assert views["a.jsonl"].mean_tokens == pytest.approx((6 + 4 * 2 + 3 + 5) / 12)
    assert views["b.jsonl"].kind == "triplet" and sum(views["b.jsonl"].histogram) == 6
    assert {view.read_examples for view in views.values()} == {6, 2, 3, 200}


def test_repeats_in_a_dataset_and_in_several(folder):
    found = look(folder)
    names = ("a.jsonl", "b.jsonl", "c.txt", "d.jsonl")
    texts = {name: (found.texts.counted[name], found.texts.distinct[name], found.texts.elsewhere[name])
             for name in names}
    assert texts == {"a.jsonl": (12, 9, 2), "b.jsonl": (6, 6, 2), "c.txt": (3, 2, 1), "d.jsonl": (400, 400, 0)}
    assert found.texts.one_in == 1
    assert set(found.texts.shared) == {("a.jsonl", "b.jsonl", 2), ("a.jsonl", "c.txt", 1), ("b.jsonl", "c.txt", 1)}
    examples = {name: (found.examples.counted[name], found.examples.distinct[name]) for name in names}
    assert examples == {"a.jsonl": (6, 5), "b.jsonl": (2, 2), "c.txt": (3, 2), "d.jsonl": (200, 200)}
    assert not any(found.examples.elsewhere.values()) and found.examples.shared == ()


def test_a_sample_is_spread_evenly(folder):
    found = look(folder, most_read=50, num_samples=4)
    views = {view.name: view for view in found.datasets}
    assert (views["d.jsonl"].read_examples, views["d.jsonl"].examples, views["a.jsonl"].read_examples) == (50, 200, 6)
    assert views["d.jsonl"].samples == tuple(
        (("query", f"w{number} one"), ("positive", f"w{number} two")) for number in (0, 50, 100, 150))
    assert views["b.jsonl"].samples[0] == (("query", "one"), ("positive", "cow"), ("negative", "dog"))
    assert look(folder, num_samples=0).datasets[0].samples == ()


def test_batches_are_those_of_the_loader(folder):
    found = look(folder, num_batches=3, num_steps=10).batches
    config = LoaderConfig(DataSettings(data_dir=str(folder)), BatchSettings(
        global_batch_size=16, packing_blocks=2, max_length=5, row_length=16), 0, 10)
    expected = [BatchSource(config, None, None)[step].statistics for step in (0, 4, 9)]
    assert found.steps == (0, 4, 9)
    assert found.real_tokens == tuple(each.real_tokens for each in expected)
    assert found.efficiency == sum(each.real_tokens for each in expected) / sum(each.row_tokens for each in expected)
    assert look(folder, num_batches=8, num_steps=2).batches.steps == (0, 1)


def test_what_the_loader_refuses_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="global_batch_size=15 is not divisible by packing_blocks=2"):
        look(folder, global_batch_size=15)
    with pytest.raises(ValueError, match="does not exist"):
        look(tmp_path / "nothing")


@pytest.mark.parametrize("seed", range(3))
def test_hash_counts_in_bounded_memory(monkeypatch, seed):
    """Beyond KEPT, the counts are those of the hashes in a range, which a plain count over that range gives."""
    generator = np.random.default_rng(seed)
    pool = generator.integers(0, 1 << 64, 3000, np.uint64, endpoint=False)
    added = [(dataset, generator.choice(pool[dataset * 500:], 700)) for dataset in (0, 1, 2, 0, 1, 2)]
    for kept in (1 << 20, 900):
        monkeypatch.setattr(inspection, "KEPT", kept)
        counts = HashCounts(["a", "b", "c"])
        for dataset, hashes in added:
            counts.add(dataset, hashes)
        assert counts._num_waiting + len(counts._hashes) <= kept + 700
        result = counts.result()
        assert (result.one_in == 1) == (kept == 1 << 20)
        below = (1 << 64) // result.one_in
        of = [collections.Counter(value for number, hashes in added if number == dataset
                                  for value in hashes.tolist() if value < below) for dataset in range(3)]
        assert list(result.counted.values()) == [each.total() for each in of]
        assert list(result.distinct.values()) == list(map(len, of))
        assert list(result.elsewhere.values()) == [
            len(each.keys() & set().union(*(other for other in of if other is not each))) for each in of]
        assert {(first, second): count for first, second, count in result.shared} == {
            (x, y): len(of["abc".index(x)].keys() & of["abc".index(y)].keys()) for x, y in ("ab", "ac", "bc")}


def test_no_hashes_at_all():
    assert dataclasses.is_dataclass(LoaderConfig) and HashCounts(["a"]).result().counted == {"a": 0}
