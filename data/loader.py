"""The loader: prepared shards -> a Grain iterator of packed batches, the share of one host.

Legend: B examples in the global batch (global_batch_size), P packing blocks in the global batch, H hosts, p = P / H
blocks of this host, m = B / P examples per block, K texts per example, T = K m texts per block, R rows per block,
L tokens per row, D_t width of a teacher's embeddings, n texts per example that the teacher has embedded.

Batch k is a pure function of (seed, k): the mixture says which example stands in which slot (data/mixture.py), and what
is drawn inside an example depends only on its slot. So the state of the iterator is the number k, and any host can
read its own blocks of any batch without looking at another's.

A text can occur twice in a global batch. It is not removed here, because a host sees only its own share. Every text
carries a 64-bit id, and the loss leaves equal texts, over all hosts, out of each other's negatives.

All blocks of a batch have as many rows as the fullest one needs, which is known only when the texts are read. Blocks of
64 examples or more keep packing efficiency above 0.90; with 8 examples it is about 0.75. On the bundled sample, with
max_length=128: 0.98 in one block, 0.94 in 8 blocks of 128, 0.92 in 8 of 64, 0.88 in 8 of 32.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from data.drawing import draw_texts, gather_texts
from data.mixture import Mixture, Plan, plan_step, read_data_config
from data.packing import DEFAULT_ROW_LENGTH, PackedTexts, choose_row_counts, pack_blocks, with_rows
from data.settings import BatchSettings, DataSettings
from data.shards import DatasetReader, RecordReader, open_dataset, read_manifest, read_table, require_same_tokenizer
from data.teacher_store import find_teacher, gather_embeddings, open_embeddings
from data.tokenizer import load_tokenizer
from data.views import TEXTS_PER_EXAMPLE, check_view_rate, make_views

ENDLESS = 1 << 40  # steps: Grain wants a length
SAMPLED_EXAMPLES = 1 << 15  # row counts are chosen from their lengths, in a third of a second
STEPS_PER_PROGRAM = 10  # a short run compiles at most one program per so many steps


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    data: DataSettings
    batch: BatchSettings = BatchSettings()
    seed: int = 0
    num_steps: int = 0  # of the run, for which row counts are chosen; 0: packing.row_count's ladder is used
    teacher: str = ""  # fingerprint of the teacher whose embeddings are the targets (main.py teach); "": none


class BatchStatistics(NamedTuple):
    """Counts over this host's share of a batch; their sums over hosts are those of the global batch."""

    real_tokens: int
    row_tokens: int  # p * R * L; packing efficiency is real_tokens / row_tokens
    texts: int
    truncated_texts: int
    datasets: tuple[tuple[str, int], ...]  # (name, examples), those that occur


class Batch(NamedTuple):
    """This host's p blocks of one global batch. A block's texts are [m queries, m positives, m negatives][: K * m]."""

    packed: PackedTexts  # [p, ...] numpy
    rows_needed: int  # of the fullest block here: hosts agree on row_count(their maximum, row_counts)
    statistics: BatchStatistics
    texts_per_example: int  # K
    pad_id: int
    row_counts: tuple[int, ...]  # ascending; see packing.row_count
    # [p, n * m, D_t] float32, with --teacher: its embeddings of a block's texts in their order, zeros for empty slots;
    # n = K, or n = 1 (the queries) if only the first texts were embedded.
    targets: np.ndarray | None = None


def make_loader(
    config: LoaderConfig, blocks: Sequence[int] | None = None, tokenizer_fingerprint: str | None = None
) -> grain.IterDataset:
    """Endless iterable whose element k is the Batch of step k, with the packing blocks listed in `blocks` (None: all).

    Its iterators have get_state() -> {"next_index": k} and set_state; Grain's checkpoint handler works with them.

    Raises:
      ValueError: sizes that do not divide, an unknown dataset or a bad weight in data_config, shards of another
        tokenizer than tokenizer_fingerprint names, damaged shards, a dataset without the teacher's embeddings. Later,
        from the iterator: embeddings of other texts than those drawn.
    """
    source = BatchSource(config, blocks, tokenizer_fingerprint)
    options = grain.ReadOptions(num_threads=config.data.loader_threads, prefetch_buffer_size=config.data.prefetch)
    return grain.MapDataset.source(source).to_iter_dataset(options)


class BatchSource:
    """Random access to the batches: source[k] is the Batch of step k. Safe to share between threads."""

    def __init__(self, config: LoaderConfig, blocks: Sequence[int] | None, tokenizer_fingerprint: str | None):
        self._row_length = config.batch.row_length or max(DEFAULT_ROW_LENGTH, config.batch.max_length)
        _check_sizes(config, self._row_length)
        self._config = config
        read_manifest(config.data.data_dir)  # its error says what to do if data_dir was not prepared
        self._tokenizer = load_tokenizer(Path(config.data.data_dir) / "tokenizer")
        if tokenizer_fingerprint is not None:
            require_same_tokenizer(config.data.data_dir, tokenizer_fingerprint)
        weights = read_data_config(config.data.data_config or Path(config.data.data_dir) / "data_config.json")
        self._readers = _open_readers(config, weights, self._tokenizer.fingerprint)
        self._readers.sort(key=_mean_tokens)  # so that blocks that miss one dataset get more of one like it
        self._mixture = Mixture(
            names=tuple(reader.name for reader in self._readers),
            weights=tuple(weights[reader.name] for reader in self._readers),
            sizes=tuple(map(len, self._readers)),
            unit=config.data.mixture,
            global_batch_size=config.batch.global_batch_size,
            packing_blocks=config.batch.packing_blocks,
            seed=config.seed,
        )
        self._row_counts, self._teacher = (), None
        if config.num_steps:
            self._row_counts = self._choose_row_counts()
        names = self._mixture.names
        self._teacher = find_teacher(config.data.data_dir, names, config.teacher) if config.teacher else None
        self._embeddings = [
            open_embeddings(config.data.data_dir, name, config.teacher, config.data.verify)
            for name in names if self._teacher
        ]
        if self._teacher and self._teacher.texts == "first" and config.data.views == "given":
            _require_no_sets(config, self._readers)
        self._blocks = range(config.batch.packing_blocks) if blocks is None else blocks

    def _choose_row_counts(self) -> tuple[int, ...]:
        """Row counts that suit the first batches, or the first blocks of large ones: the same on every host."""
        settings = self._config.batch
        examples_per_block = settings.global_batch_size // settings.packing_blocks
        self._blocks = range(max(1, min(settings.packing_blocks, SAMPLED_EXAMPLES // examples_per_block)))
        steps = max(1, SAMPLED_EXAMPLES // (examples_per_block * len(self._blocks)))
        needed = [self[step].rows_needed for step in range(min(steps, self._config.num_steps))]
        return choose_row_counts(needed, min(settings.row_counts, max(1, self._config.num_steps // STEPS_PER_PROGRAM)))

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> Batch:
        data, tokenizer = self._config.data, self._tokenizer
        plan = plan_step(self._mixture, step, self._blocks)
        texts_per_example = self._texts_per_example(plan)
        table = read_table(self._read(self._readers, plan))
        if data.views == "given":
            places = draw_texts(table, plan.choices, texts_per_example)  # [K, p * m]
        else:
            places = np.zeros((texts_per_example, len(plan.datasets)), np.int64)
        examples = np.broadcast_to(np.arange(places.shape[1]), places.shape)
        texts = gather_texts(
            table, self._by_block(examples), self._by_block(places),
            self._config.batch.max_length, tokenizer.prefix_id, tokenizer.suffix_id,
        )
        if data.views != "given":  # views have no other use of the slots' random words: they start the streams
            texts = make_views(texts, data.views, data.view_rate, self._by_block(plan.choices.T[:len(places)]))
        block_shape = (len(self._blocks), -1)
        packed, rows_needed = pack_blocks(
            texts.tokens, texts.lengths.reshape(block_shape), texts.text_ids.reshape(block_shape),
            self._row_length, tokenizer.pad_id, row_counts=self._row_counts,
        )
        statistics = BatchStatistics(
            real_tokens=len(texts.tokens),
            row_tokens=packed.tokens.size,
            texts=int(np.count_nonzero(texts.lengths)),
            truncated_texts=int(np.count_nonzero(texts.truncated)),
            datasets=self._dataset_counts(plan),
        )
        targets = self._targets(plan, places, texts.text_ids) if self._teacher else None
        return Batch(packed, rows_needed, statistics, texts_per_example, tokenizer.pad_id, self._row_counts, targets)

    def _targets(self, plan: Plan, places: np.ndarray, text_ids: np.ndarray) -> np.ndarray:
        """The teacher's embeddings [p, n * m, D_t] of the texts drawn: places [K, p * m], their ids [p * K * m]."""
        n = 1 if self._teacher.texts == "first" else len(places)
        examples = self._by_block(np.broadcast_to(np.arange(places.shape[1]), (n, places.shape[1])))
        records = self._read(self._embeddings, plan)
        found, targets = gather_embeddings(records, examples, self._by_block(places[:n]), self._teacher)
        drawn = text_ids.reshape(len(self._blocks), len(places), -1)[:, :n].reshape(-1)
        if (found != drawn).any():
            wrong = np.argmax(found != drawn)
            dataset, example = plan.datasets[examples[wrong]], plan.indices[examples[wrong]]
            raise ValueError(
                f"teacher {self._teacher.fingerprint} was shown another text than {self._config.data.data_dir}/"
                f"{self._mixture.names[dataset]} has in example {example}: text ids {found[wrong]} and {drawn[wrong]}: "
                "run `main.py teach` again"
            )
        return targets.reshape(len(self._blocks), -1, self._teacher.width)

    def _by_block(self, values: np.ndarray) -> np.ndarray:
        """[K, p * m] -> [p * K * m]: block by block, in each all queries, all positives, all negatives."""
        return values.reshape(len(values), len(self._blocks), -1).swapaxes(0, 1).reshape(-1)

    def _texts_per_example(self, plan: Plan) -> int:
        """K: the same for every host and, if the unit is an example, for every batch."""
        if self._config.data.views != "given":
            return TEXTS_PER_EXAMPLE[self._config.data.views]
        readers = self._readers if self._mixture.unit == "example" else [self._readers[plan.datasets[0]]]
        return 3 if self._config.data.hard_negatives and any(reader.has_negatives for reader in readers) else 2

    def _read(self, readers: Sequence[RecordReader], plan: Plan) -> list[bytes]:
        """The planned records, in their order, with one batched read for each dataset."""
        records = [b""] * len(plan.datasets)
        order = np.argsort(plan.datasets, kind="stable")
        names, starts = np.unique(plan.datasets[order], return_index=True)
        for dataset, slots in zip(names.tolist(), np.split(order, starts[1:])):
            found = readers[dataset].read_records(plan.indices[slots].tolist())
            for slot, record in zip(slots.tolist(), found):
                records[slot] = record
        return records

    def _dataset_counts(self, plan: Plan) -> tuple[tuple[str, int], ...]:
        counts = np.bincount(plan.datasets, minlength=len(self._mixture.names)).tolist()
        return tuple((name, count) for name, count in zip(self._mixture.names, counts) if count)


def batch_with_rows(batch: Batch, num_rows: int) -> Batch:
    """The same batch in blocks of num_rows rows, so that every host's share has one shape."""
    packed = with_rows(batch.packed, num_rows, batch.pad_id)
    return batch._replace(packed=packed, statistics=batch.statistics._replace(row_tokens=packed.tokens.size))


def _check_sizes(config: LoaderConfig, row_length: int) -> None:
    size, blocks, longest = config.batch.global_batch_size, config.batch.packing_blocks, config.batch.max_length
    if size < 1 or blocks < 1 or size % blocks:
        raise ValueError(f"global_batch_size={size} is not divisible by packing_blocks={blocks}")
    if longest > row_length:
        raise ValueError(f"max_length={longest} is above row_length={row_length}: a text must fit in a row")
    if longest < 3:
        raise ValueError(f"max_length={longest} leaves no room for a token between the two special ones")
    check_view_rate(config.data.view_rate)


def _open_readers(config: LoaderConfig, weights: dict[str, int], tokenizer_fingerprint: str) -> list[DatasetReader]:
    """A reader for each dataset of the mixture, checked against the others, the model and max_length."""
    data_dir, max_length = config.data.data_dir, config.batch.max_length
    readers = [open_dataset(data_dir, name, config.data.verify) for name in weights]
    for reader in readers:
        if (found := reader.manifest["tokenizer"]) != tokenizer_fingerprint:
            raise ValueError(
                f"{data_dir}/{reader.name} was prepared with another tokenizer: its fingerprint is {found}, not "
                f"{tokenizer_fingerprint}: run `main.py prepare` again"
            )
        stored = reader.manifest["options"]["max_tokens_per_text"]
        if max_length - 2 > stored:
            raise ValueError(
                f"max_length={max_length} takes {max_length - 2} tokens of a text and two special ones, "
                f"and {data_dir}/{reader.name} stores {stored}: prepare with a larger --max_tokens_per_text"
            )
    return readers


def _require_no_sets(config: LoaderConfig, readers: list[DatasetReader]) -> None:
    """Raises ValueError for a set: any of its texts may be drawn as the query, and only the first was embedded."""
    for reader in readers:
        if reader.kind == "set":
            raise ValueError(
                f"{config.data.data_dir}/{reader.name} holds sets, of which any two texts are drawn, but teacher "
                f"{config.teacher} has embedded only the first text of each: run `main.py teach --texts=all`"
            )


def _mean_tokens(reader: DatasetReader) -> float:
    return reader.manifest["tokens"] / reader.manifest["texts"]
