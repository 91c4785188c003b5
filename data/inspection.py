"""What a prepared folder holds and what training on it will ask for: counts, lengths, duplicates, packed batches.

Counts and the histogram of lengths are those of the manifests: of all texts. Truncation, duplicates and examples come
from the records: of all of them, or of `most_read` of each dataset, spread evenly. Memory is bounded: of more than
KEPT texts (or examples) only those with small ids are kept. Ids are hashes, so all copies of a text are kept or none
is, and shares stay unbiased. Batches are made by the loader itself.
"""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.loader import BatchSource, LoaderConfig
from data.mixture import mix_words, read_data_config
from data.shards import (
    DatasetReader,
    Example,
    gather_stored,
    open_dataset,
    ragged_arange,
    read_manifest,
    read_table,
)
from data.tokenizer import TextTokenizer, load_tokenizer

KEPT = 1 << 22  # texts, and as many examples: 20 bytes each, and twice that while they are sorted
READ_AT_ONCE = 1 << 14  # examples
NAMED_PAIRS = 10  # of datasets that share the most texts


class DatasetView(NamedTuple):
    name: str
    kind: str
    examples: int
    texts: int
    mean_tokens: float  # of a text, special tokens left out
    histogram: tuple[int, ...]  # texts by length, in the bins of Inspection.edges
    weight: int
    probability: float  # that an example of a batch is drawn from it
    epochs: float  # over the planned run
    read_examples: int
    read_texts: int
    truncated_texts: int  # of those read
    samples: tuple[tuple[tuple[str, str], ...], ...]  # (role, decoded text) of each text of some examples


class Repeats(NamedTuple):
    """Of texts or of examples, by their hashes."""

    one_in: int  # hashes that the counts stand for: 1 is all of them
    counted: dict[str, int]  # dataset -> how many it has
    distinct: dict[str, int]
    elsewhere: dict[str, int]  # distinct ones that another dataset has too
    shared: tuple[tuple[str, str, int], ...]  # the pairs of datasets that share the most


class BatchView(NamedTuple):
    """Some steps of the run, as the loader packs them for all hosts together."""

    steps: tuple[int, ...]
    real_tokens: tuple[int, ...]  # special tokens included
    row_tokens: tuple[int, ...]  # of all rows, padding included: what the devices compute
    texts: tuple[int, ...]
    truncated_texts: tuple[int, ...]

    @property
    def efficiency(self) -> float:
        return sum(self.real_tokens) / sum(self.row_tokens)


class Inspection(NamedTuple):
    data_dir: str
    edges: tuple[int, ...]  # lower edges of the bins of lengths
    datasets: tuple[DatasetView, ...]
    texts: Repeats
    examples: Repeats
    batches: BatchView
    num_steps: int
    global_batch_size: int
    max_length: int


def inspect_data(config: LoaderConfig, most_read: int, num_samples: int, num_batches: int) -> Inspection:
    """Reads a prepared folder. most_read: examples read of each dataset; 0: all.

    Raises ValueError for what the loader refuses: sizes that do not divide, unknown datasets, damaged shards.
    """
    data_dir = Path(config.data.data_dir)
    read_manifest(data_dir)
    weights = read_data_config(config.data.data_config or data_dir / "data_config.json")
    source = BatchSource(config, None, None)
    tokenizer = load_tokenizer(data_dir / "tokenizer")
    texts, examples = HashCounts(list(weights)), HashCounts(list(weights))
    views = []
    for index, name in enumerate(weights):
        reader = open_dataset(data_dir, name, "size")
        probability = weights[name] / sum(weights.values())
        drawn = config.num_steps * config.batch.global_batch_size * probability
        read_examples = read_texts = truncated = 0
        for text_ids, example_ids, lengths in read_hashes(reader, most_read):
            texts.add(index, text_ids)
            examples.add(index, example_ids)
            read_examples, read_texts = read_examples + len(example_ids), read_texts + len(lengths)
            truncated += int((lengths > config.batch.max_length - 2).sum())
        manifest = reader.manifest
        views.append(DatasetView(
            name, reader.kind, len(reader), manifest["texts"], manifest["tokens"] / manifest["texts"],
            tuple(manifest["length_histogram"]["counts"]), weights[name], probability, drawn / len(reader),
            read_examples, read_texts, truncated, tuple(decoded_samples(reader, tokenizer, num_samples))))
    edges = tuple(reader.manifest["length_histogram"]["edges"])
    return Inspection(str(data_dir), edges, tuple(views), texts.result(), examples.result(),
                      pack_batches(source, config.num_steps, num_batches), config.num_steps,
                      config.batch.global_batch_size, config.batch.max_length)


def pack_batches(source: BatchSource, num_steps: int, count: int) -> BatchView:
    """`count` batches of the run, spread evenly over its steps."""
    steps = tuple(np.unique(np.linspace(0, num_steps - 1, min(count, num_steps)).astype(int)).tolist())
    statistics = [source[step].statistics for step in steps]
    return BatchView(steps, *(tuple(getattr(each, name) for each in statistics)
                              for name in ("real_tokens", "row_tokens", "texts", "truncated_texts")))


def read_hashes(reader: DatasetReader, most: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ids of texts, hashes of examples, full lengths of texts) of some examples at a time.

    A text that an example has twice gives its id once: in a .txt file it is query and positive.
    """
    for indices in _evenly_spaced(len(reader), most):
        table = read_table(reader.read_records(indices))
        counts = table.headers["num_texts"].astype(np.int64)
        owners, places = np.repeat(np.arange(len(counts)), counts), ragged_arange(counts)
        stored = gather_stored(table, owners, places, np.zeros(len(owners), np.int64))
        ids = stored.text_ids
        in_order = mix_words(ids + places.astype(np.uint64))  # so that [a, b] is another example than [b, a]
        hashes = mix_words(np.add.reduceat(in_order, np.cumsum(counts) - counts))
        order = np.lexsort((ids, owners))
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(ids[order].astype(np.uint64)) != 0) | (np.diff(owners[order]) != 0)
        yield ids[order][first], hashes, stored.full_lengths


def _evenly_spaced(size: int, most: int) -> Iterator[list[int]]:
    count = min(size, most or size)
    for start in range(0, count, READ_AT_ONCE):
        places = range(start, min(start + READ_AT_ONCE, count))
        yield [place * size // count for place in places]


class HashCounts:
    """How often each hash occurs in each dataset, for at most KEPT of them: of more, the smaller hashes."""

    def __init__(self, names: list[str]):
        self._names = names
        self._halvings = 0  # hashes below 2^(64 - halvings) are kept
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._num_waiting = 0
        self._hashes, self._datasets, self._counts = (np.zeros(0, kind) for kind in (np.uint64, np.int32, np.int64))

    def add(self, dataset: int, hashes: np.ndarray) -> None:
        hashes = hashes[hashes <= self._largest()]
        self._waiting.append((dataset, hashes))
        self._num_waiting += len(hashes)
        if self._num_waiting + len(self._hashes) > KEPT:
            self._merge()
            while len(self._hashes) > KEPT // 2:
                self._halvings += 1
                kept = self._hashes <= self._largest()
                self._hashes, self._datasets, self._counts = (
                    values[kept] for values in (self._hashes, self._datasets, self._counts))

    def _largest(self) -> np.uint64:
        return np.uint64((1 << (64 - self._halvings)) - 1)

    def _merge(self) -> None:
        new = [hashes for _, hashes in self._waiting]
        hashes = np.concatenate([self._hashes, *new])
        datasets = np.concatenate([self._datasets, *(np.full(len(each), dataset, np.int32)
                                                     for dataset, each in self._waiting)])
        counts = np.concatenate([self._counts, np.ones(len(hashes) - len(self._counts), np.int64)])
        order = np.lexsort((datasets, hashes))
        hashes, datasets, counts = hashes[order], datasets[order], counts[order]
        first = np.ones(len(hashes), bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (datasets[1:] != datasets[:-1])
        starts = np.flatnonzero(first)
        self._hashes, self._datasets = hashes[starts], datasets[starts]
        self._counts = np.add.reduceat(counts, starts) if len(starts) else counts
        self._waiting, self._num_waiting = [], 0

    def result(self) -> Repeats:
        self._merge()
        size = len(self._names)
        like_next = self._hashes[1:] == self._hashes[:-1]
        elsewhere = np.zeros(len(self._hashes), bool)
        elsewhere[1:] |= like_next
        elsewhere[:-1] |= like_next
        pairs: collections.Counter = collections.Counter()
        for step in range(1, size):  # neighbours, then those two apart, and so on: as many as share one hash
            same = self._hashes[step:] == self._hashes[:-step]
            if not same.any():
                break
            both = self._datasets[:-step][same].astype(np.int64) * size + self._datasets[step:][same]
            pairs.update(dict(zip(*(values.tolist() for values in np.unique(both, return_counts=True)))))
        return Repeats(
            1 << self._halvings,
            self._by_name(np.bincount(self._datasets, self._counts, size)),
            self._by_name(np.bincount(self._datasets, minlength=size)),
            self._by_name(np.bincount(self._datasets[elsewhere], minlength=size)),
            tuple((self._names[pair // size], self._names[pair % size], count)
                  for pair, count in pairs.most_common(NAMED_PAIRS)))

    def _by_name(self, values: np.ndarray) -> dict[str, int]:
        return {name: int(value) for name, value in zip(self._names, values)}


def decoded_samples(
    reader: DatasetReader, tokenizer: TextTokenizer, count: int
) -> Iterator[tuple[tuple[str, str], ...]]:
    """(role, text of the stored tokens) of each text of `count` examples, spread evenly."""
    for indices in _evenly_spaced(len(reader), count) if count else ():
        for example in reader.read(indices):
            yield tuple((role, tokenizer.decode(text.tokens)) for role, text in zip(_roles(example), example.texts))


def _roles(example: Example) -> list[str]:
    if example.kind == "set":
        return ["text"] * len(example.texts)
    return ["query", *["positive"] * len(example.positives), *["negative"] * len(example.negatives)]
