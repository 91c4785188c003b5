"""The loader against what its source files say, read one line at a time."""

import collections
import json

import numpy as np
import pytest

from data.loader import Batch, BatchSource, LoaderConfig, batch_with_rows, make_loader
from data.packing import PackedTexts, row_count
from data.prepare import PrepareConfig, prepare
from data.settings import BatchSettings, DataSettings
from data.shards import DatasetReader, text_id
from data.tokenizer import load_tokenizer
from flags import with_values

WORDS = [f"word{i}" for i in range(200)]


def random_text(random, longest=30):
    return " ".join(random.choice(WORDS, int(random.integers(1, longest))))


def random_lines(random, kind, count):
    def text():
        return random_text(random)

    def texts(least, most):
        return [text() for _ in range(int(random.integers(least, most)))]

    make = {
        "pair": lambda: [text(), text()],
        "triplet": lambda: [text(), text(), text()],
        "set": lambda: {"set": texts(2, 9)},
        "lists": lambda: {"query": text(), "pos": texts(1, 4), "neg": texts(1, 6)},
        "scored": lambda: {"query": text(), "pos": [text()], "neg": (neg := texts(1, 4)), "pos_scores": [0.5],
                           "neg_scores": [0.25] * len(neg)},
    }
    return [make[kind]() for _ in range(count)]


def write_tokenizer(folder, words):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]) + "\n")
    return folder


def prepare_lines(folder, lines_of, tokenizer, **options):
    (folder / "source").mkdir(parents=True)
    for name, lines in lines_of.items():
        (folder / "source" / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(PrepareConfig(source_dir=str(folder / "source"), tokenizer=str(tokenizer), data_dir=str(folder / "data"),
                          workers=1, **options))
    return str(folder / "data")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words", WORDS)


@pytest.fixture(scope="module")
def source_lines():
    random = np.random.default_rng(0)
    sizes = {"pair": 37, "triplet": 50, "set": 23, "lists": 40, "scored": 5}
    return {f"{kind}.jsonl": random_lines(random, kind, size) for kind, size in sizes.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, source_lines, tokenizer_folder):
    return prepare_lines(tmp_path_factory.mktemp("prepared"), source_lines, tokenizer_folder, records_per_shard=15)


@pytest.fixture
def config(data_dir, tmp_path):
    def make(weights=None, **options):
        path = ""
        if weights is not None:
            path = str(tmp_path / "data_config.json")
            entries = [{"name": f"{kind}.jsonl", "weight": weight} for kind, weight in weights.items()]
            (tmp_path / "data_config.json").write_text(json.dumps(entries))
        settings = {"global_batch_size": 32, "packing_blocks": 4, "max_length": 24} | options
        return loader_config(data_dir, data_config=path, **settings)

    return make


def loader_config(data_dir, **options) -> LoaderConfig:
    """The loader's settings by their flags' names; one packing block unless they say otherwise."""
    settings = LoaderConfig(DataSettings(), BatchSettings(packing_blocks=1))
    return with_values(settings, data_dir=str(data_dir), **options)


def batches_of(config, steps, blocks=None):
    source = BatchSource(config, blocks, None)
    return [source[step] for step in steps]


def concatenate(batches):
    return PackedTexts(*(np.concatenate(field) for field in zip(*(batch.packed for batch in batches))))


def assert_equal(first: PackedTexts, second: PackedTexts):
    for name, one, other in zip(PackedTexts._fields, first, second):
        assert one.dtype == other.dtype and np.array_equal(one, other), name


def text_slots(batch: Batch):
    """[p, T] (text id, tokens) of every slot; (0, None) where it is empty."""
    packed = batch.packed
    ids = packed.text_ids[..., 0].astype(np.uint64) | packed.text_ids[..., 1].astype(np.uint64) << np.uint64(32)
    slots = []
    for block in range(len(ids)):
        slots.append([])
        for slot, (row, segment) in enumerate(zip(packed.text_rows[block], packed.text_segments[block])):
            here = packed.segments[block, row] == segment
            tokens = packed.tokens[block, row][here] if segment else None
            slots[-1].append((int(ids[block, slot]), tokens))
    return slots


def allowed_examples(lines, with_negatives):
    """Every (query, positive, negative) id triple that a line may become; 0 for no negative."""
    allowed = set()
    for line in lines:
        if isinstance(line, dict) and "set" in line:
            pairs = [(a, b, None) for i, a in enumerate(line["set"]) for j, b in enumerate(line["set"]) if i != j]
        elif isinstance(line, dict):
            pairs = [(line["query"], pos, neg) for pos in line["pos"] for neg in line["neg"]]
        else:
            pairs = [(line[0], line[1], line[2] if len(line) == 3 else None)]
        for query, positive, negative in pairs:
            negative_id = text_id(negative) if negative is not None and with_negatives else 0
            allowed.add((text_id(query), text_id(positive), negative_id))
    return allowed


@pytest.mark.parametrize("hard_negatives", [True, False])
@pytest.mark.parametrize("mixture", ["example", "dataset"])
def test_batches_hold_texts_of_the_source(config, source_lines, tokenizer_folder, mixture, hard_negatives):
    settings = config(mixture=mixture, hard_negatives=hard_negatives)
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = {}
    for lines in source_lines.values():
        for line in lines:
            parts = line if isinstance(line, list) else [
                text for key in ("set", "pos", "neg") for text in line.get(key, [])
            ] + ([line["query"]] if "query" in line else [])
            texts |= {text_id(text): text for text in parts}
    allowed = {name: allowed_examples(lines, hard_negatives) for name, lines in source_lines.items()}
    has_negatives = {"triplet.jsonl", "lists.jsonl", "scored.jsonl"}
    seen = set()
    for batch in batches_of(settings, range(12)):
        counts = dict(batch.statistics.datasets)
        negatives = hard_negatives and (mixture == "example" or bool(set(counts) & has_negatives))
        assert batch.texts_per_example == (3 if negatives else 2)
        real_tokens = num_texts = truncated = 0
        found = collections.Counter()
        for block in text_slots(batch):
            assert len(block) == 8 * batch.texts_per_example
            for identifier, tokens in block:
                if identifier == 0:
                    assert tokens is None
                    continue
                whole = tokenizer.encode([texts[identifier]])[0]
                assert tokens.tolist() == [2, *whole.tolist()[:22], 3]
                real_tokens += len(tokens)
                num_texts += 1
                truncated += len(whole) > 22
            ids = [identifier for identifier, _ in block] + [0] * 8
            for example in zip(ids[:8], ids[8:16], ids[16:24]):
                names = [name for name, examples in allowed.items() if example in examples]
                assert len(names) == 1, "each example is one that a single line allows"
                found[names[0]] += 1
                seen.add(example)
        assert found == counts
        assert batch.statistics[:4] == (real_tokens, batch.packed.tokens.size, num_texts, truncated) and truncated > 0
        assert batch.packed.tokens.shape == (4, row_count(batch.rows_needed), 128)
        assert batch.rows_needed == batch.packed.text_rows.max() + 1
    assert len(seen) > 200, "examples differ from batch to batch"


def test_every_choice_inside_an_example_is_made(config, source_lines):
    """Many epochs of the sets and lists show every ordered pair of a set, every positive and every negative."""
    for kind, steps in (("set", 200), ("lists", 200)):
        seen = set()
        for batch in batches_of(config({kind: 1}, global_batch_size=64), range(steps)):
            ids = np.array([[identifier for identifier, _ in block] for block in text_slots(batch)], np.uint64)
            ids = ids.reshape(4, batch.texts_per_example, 16).swapaxes(1, 2).reshape(-1, batch.texts_per_example)
            seen |= {tuple([*example, 0][:3]) for example in ids.tolist()}
        assert seen == allowed_examples(source_lines[f"{kind}.jsonl"], with_negatives=True)


@pytest.mark.parametrize("mixture", ["example", "dataset"])
def test_hosts_hold_slices_of_one_global_batch(config, mixture):
    settings = config(mixture=mixture)
    steps = (0, 1, 7, 10**9)
    for step, whole in zip(steps, batches_of(settings, steps)):
        for hosts in (2, 4):
            shares = [batches_of(settings, [step], blocks)[0] for blocks in np.arange(4).reshape(hosts, -1)]
            rows = row_count(max(share.rows_needed for share in shares))
            shares = [batch_with_rows(share, rows) for share in shares]
            assert_equal(concatenate(shares), whole.packed)
            totals = [share.statistics for share in shares]
            for field in ("real_tokens", "row_tokens", "texts", "truncated_texts"):
                assert sum(getattr(total, field) for total in totals) == getattr(whole.statistics, field)
            datasets = sum((collections.Counter(dict(total.datasets)) for total in totals), collections.Counter())
            assert datasets == dict(whole.statistics.datasets)


def test_the_blocks_of_a_host_need_not_be_neighbours(config):
    settings = config()
    [whole], [share] = batches_of(settings, [3]), batches_of(settings, [3], [0, 3])
    share = batch_with_rows(share, whole.packed.tokens.shape[1])
    assert_equal(share.packed, PackedTexts(*(field[[0, 3]] for field in whole.packed)))


def test_a_host_reads_its_own_examples_alone(config, monkeypatch):
    read, calls = [], []
    original = DatasetReader.read_records

    def read_records(self, indices):
        read.extend((self.name, index) for index in indices)
        calls.append(self.name)
        return original(self, indices)

    monkeypatch.setattr(DatasetReader, "read_records", read_records)
    batches_of(config(), [3])
    whole = collections.Counter(read)
    assert whole.total() == 32 and len(calls) == len(set(calls)), "one read a dataset"
    shares = collections.Counter()
    for block in range(4):
        read.clear()
        batches_of(config(), [3], [block])
        assert len(read) == 8
        shares.update(read)
    assert shares == whole


def test_the_seed_decides_the_order(config):
    first, again, other = (batches_of(config(seed=seed), [2])[0] for seed in (1, 1, 2))
    assert_equal(first.packed, again.packed)
    assert not np.array_equal(first.packed.text_ids, other.packed.text_ids)


def test_the_iterator_restores_its_exact_state(config):
    settings = config(loader_threads=2, prefetch=3)
    expected = batches_of(settings, range(12))
    iterator = iter(make_loader(settings))
    for step in range(5):  # in the middle of the first epoch of most datasets
        assert_equal(next(iterator).packed, expected[step].packed)
    state = json.loads(json.dumps(iterator.get_state()))
    for _ in range(3):
        next(iterator)
    resumed = iter(make_loader(settings))
    resumed.set_state(state)
    iterator.set_state(state)
    for step in range(5, 12):
        for batch in (next(resumed), next(iterator)):
            assert_equal(batch.packed, expected[step].packed)
            assert batch.statistics == expected[step].statistics


def test_row_counts_are_chosen_from_the_first_batches(config):
    """A short run gets one size per ten steps at most; the texts are the same, and so are all hosts' sizes."""
    steps = 30
    few = batches_of(config(num_steps=steps), range(steps))
    assert len({batch.packed.tokens.shape[1] for batch in few}) <= 3
    assert all(batch.row_counts == few[0].row_counts for batch in batches_of(config(num_steps=steps), range(2), [1, 3]))
    for batch, other in zip(few, batches_of(config(), range(steps))):
        rows = row_count(batch.rows_needed, batch.row_counts)
        assert batch.packed.tokens.shape[1] == rows in batch.row_counts
        assert_equal(batch.packed, batch_with_rows(other, rows).packed)


def test_weights_of_the_config(config):
    counts = collections.Counter()
    for batch in batches_of(config({"set": 5, "pair": 2, "triplet": 1}), range(10)):
        counts.update(dict(batch.statistics.datasets))
    assert counts == {"set.jsonl": 200, "pair.jsonl": 80, "triplet.jsonl": 40}


def test_tokens_of_a_large_vocabulary(tmp_path):
    """More than 65,536 tokens are stored in four bytes each."""
    random = np.random.default_rng(1)
    tokenizer = write_tokenizer(tmp_path / "tokenizer", [f"t{i}" for i in range(70_000)])
    numbers = random.integers(60_000, 70_000, (20, 3, 5))
    lines = [[" ".join(f"t{number}" for number in text) for text in triplet] for triplet in numbers]
    folder = prepare_lines(tmp_path / "prepared", {"large.jsonl": lines}, tokenizer)
    batch = batches_of(loader_config(folder, global_batch_size=20, max_length=32), [0])[0]
    tokens = {identifier: tokens.tolist() for identifier, tokens in text_slots(batch)[0]}
    expected = {text_id(text): [2, *(number + 4 for number in row.tolist()), 3]
                for line, rows in zip(lines, numbers) for text, row in zip(line, rows)}
    assert tokens == expected


@pytest.mark.parametrize(("options", "message"), [
    ({"global_batch_size": 30}, "global_batch_size=30 is not divisible by packing_blocks=4"),
    ({"max_length": 65, "row_length": 64}, "max_length=65 is above row_length=64"),
    ({"max_length": 2}, "max_length=2 leaves no room"),
    ({"max_length": 600}, "stores 512: prepare with a larger --max_tokens_per_text"),
    ({"weights": {"pair": 1, "nosuch": 2}}, r"unknown dataset 'nosuch.jsonl'.*has .*pair\.jsonl.*triplet\.jsonl"),
    ({"weights": {"pair": 0}}, r"pair\.jsonl.*positive integer, not 0"),
])
def test_bad_settings(config, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(config(**options))


def test_shards_of_another_tokenizer(config, tokenizer_folder, tmp_path):
    right = load_tokenizer(tokenizer_folder).fingerprint
    make_loader(config(), tokenizer_fingerprint=right)
    with pytest.raises(ValueError, match=f"{right}.*{'0' * 64}"):
        make_loader(config(), tokenizer_fingerprint="0" * 64)
    lines = {"one.jsonl": [["word1", "word2"]] * 4, "two.jsonl": [["word3", "word4"]] * 4}
    folder = prepare_lines(tmp_path / "prepared", lines, tokenizer_folder)
    path = tmp_path / "prepared" / "data" / "two.jsonl" / "manifest.json"
    path.write_text(path.read_text().replace(right, "1" * 64))
    with pytest.raises(ValueError, match=f"two.jsonl.*{'1' * 64}.*{right}"):
        make_loader(loader_config(folder, global_batch_size=4))
