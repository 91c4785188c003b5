"""Transfer to natural language inference: how well does a linear probe on frozen embeddings tell three labels apart?

    accuracy of argmax softmax(f(u, v) W + b) on test

with f = [|u-v|, u*v] for SICK-E and [u, v, u*v, |u-v|] for SNLI. u and v are the embeddings as the model gives them: of
unit length if it normalises. W and b are fitted on train with each C (l2 strength 1 / C) in STRENGTHS. The accuracy on
dev selects C, the smallest if several are equal. Features and grid are those of SentEval (Conneau and Kiela, 2018).
SentEval has no penalty for SNLI; SCT's published tables select it there too.

Legend: n = pairs of a split, D = embedding width.
"""

import functools
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from evaluation.files.lines import aligned_lines, log_left_out, table_rows
from evaluation.task import MissingData, Result, Scores, Task, data_folder
from inference.embedding import EncodeFunction, embeddings_of, unit_length

if TYPE_CHECKING:
    from evaluation.embedder import Embedder
    from evaluation.measures.probe import Features, Pairs

TASKS = ("sicke", "snli")
LABELS = ("entailment", "neutral", "contradiction")
NO_MAJORITY = "-"  # SNLI's label if the annotators did not agree
WITHOUT_MAJORITY = f"pairs without a majority label ({NO_MAJORITY})"
SPLITS = ("train", "dev", "test")
STRENGTHS = tuple(2.0 ** power for power in range(-2, 4))
FOLDS = 5
TSV_FILES = {"sicke": ("sick.tsv", "sick.tsv.gz"),
             "snli": ("snli.tsv", "snli.tsv.gz", "snli_dev_test.tsv", "snli_dev_test.tsv.gz")}
LABEL_COLUMNS = {"sicke": "entailment_label", "snli": "label"}
SENTEVAL_FOLDERS = {"sicke": "SICK", "snli": "SNLI"}
SICK_FILES = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}


class LabelledPair(NamedTuple):
    sentence1: str
    sentence2: str
    label: int  # index in LABELS


class TransferScores(NamedTuple):
    correct: np.ndarray  # [n] bool, each pair of test
    dev_accuracy: float  # in [0, 1], of the chosen strength; cross-validated if there is no train split
    strength: float  # the chosen C


def sicke_features(u: Any, v: Any) -> list[Any]:  # numpy or JAX arrays [n, D]
    return [abs(u - v), u * v]


def snli_features(u: Any, v: Any) -> list[Any]:
    return [u, v, u * v, abs(u - v)]


FEATURES = {"sicke": sicke_features, "snli": snli_features}


def read_task(data_dir: str, name: str) -> Task:
    """sicke or snli, from SentEval's folder (DIR[/downstream]/SICK or SNLI) or else from a table in DIR[/eval].

    A table of SNLI without a train split gives the task snli_fit_on_dev: the probe is fitted on dev, and
    cross-validation there selects the strength. This does not compare with the published tables, whose probe sees
    550,000 pairs. Raises ValueError naming file:line for a wrong number of columns or lines, an unknown label and an
    empty sentence; and for a data_dir without the data set, and a split without one of the labels.
    """
    splits = _read_splits(data_dir, name)
    for split, pairs in splits.items():
        counts = np.bincount([pair.label for pair in pairs], minlength=len(LABELS))
        if not counts.all():
            raise ValueError(f"--data_dir={data_dir}: the {split} split of {name} has no pair with the label "
                             f"{LABELS[int(counts.argmin())]!r}")
    task = name
    if "train" not in splits:
        task = f"{name}_fit_on_dev"
        logging.info("%s has no train split: %s fits its probe on the %d pairs of dev, unlike the published figures",
                     name, task, len(splits["dev"]))
    texts = [text for pairs in splits.values() for pair in pairs for text in pair[:2]]
    return Task(task, texts, functools.partial(_score, name=task, splits=splits, features=FEATURES[name]))


def _score(embedder: "Embedder", name: str, splits: dict[str, list[LabelledPair]], features: "Features") -> Scores:
    scores = evaluate_transfer(embedder, splits, features, embedder.encoder.config.normalize)
    logging.info("%s: C=%g", name, scores.strength)
    results = [
        Result(name, "test", "accuracy", 100 * float(scores.correct.mean()), len(splits["test"])),
        Result(name, "dev", "accuracy", 100 * scores.dev_accuracy, len(splits["dev"])),
    ]
    return Scores(results, {"accuracy": scores.correct.astype(float).tolist()})


def evaluate_transfer(
    encode: EncodeFunction, splits: dict[str, list[LabelledPair]], features: "Features", normalize: bool
) -> TransferScores:
    """Fits a probe with each strength, selects one on dev and scores it on test.

    Args:
        splits: train, dev and test; without train the probe learns from dev, and FOLDS-fold cross-validation selects.
        features: u, v -> arrays [n, D], side by side.
        normalize: divide the embeddings by their lengths first.
    """
    from evaluation.measures.probe import fit, predict  # they need JAX

    train, dev, test = (_embed(encode, splits[split], normalize) if split in splits else None for split in SPLITS)
    if train:
        subsets = np.ones((len(train.labels), 1), bool)
        judge = np.zeros(len(dev.labels), np.int64)  # the fit that predicts each pair of dev
    else:
        train, judge = dev, premise_folds(splits["dev"])
        subsets = np.concatenate([judge[:, None] != np.arange(FOLDS), np.ones((len(judge), 1), bool)], axis=1)
    probes = fit(train, subsets, STRENGTHS, features, len(LABELS))
    accuracies = []
    for strength, probe in zip(STRENGTHS, probes):
        predicted = np.take_along_axis(predict(probe, dev, features), judge[:, None], axis=1)[:, 0]
        accuracies.append(float((predicted == dev.labels).mean()))
        logging.info("C=%g: %.2f on dev", strength, 100 * accuracies[-1])
    best = int(np.argmax(accuracies))
    correct = predict(probes[best], test, features)[:, -1] == test.labels  # the last fit learns from all pairs
    return TransferScores(correct, accuracies[best], STRENGTHS[best])


def premise_folds(pairs: list[LabelledPair]) -> np.ndarray:
    """[n] int: the fold of each pair. Pairs of one sentence1 share a fold: SNLI has three hypotheses per premise."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(pair.sentence1, len(numbers)) % FOLDS for pair in pairs])


def _embed(encode: EncodeFunction, pairs: list[LabelledPair], normalize: bool) -> "Pairs":
    from evaluation.measures.probe import Pairs

    sides = [embeddings_of(encode, [pair[side] for pair in pairs]) for side in (0, 1)]
    if normalize:
        sides = [unit_length(side) for side in sides]
    return Pairs(*sides, np.array([pair.label for pair in pairs]))  # type: ignore[call-arg]


def _read_splits(data_dir: str, name: str) -> dict[str, list[LabelledPair]]:
    root = data_folder(data_dir)
    folders = [root / "downstream" / SENTEVAL_FOLDERS[name], root / SENTEVAL_FOLDERS[name]]
    tables = [folder / file for folder in (root / "eval", root) for file in TSV_FILES[name]]
    for folder in folders:
        if folder.is_dir():
            read = _read_sick_file if name == "sicke" else _read_snli_files
            return {split: read(folder, split) for split in SPLITS}
    for table in tables:
        if table.is_file():
            return _read_table(table, name)
    raise MissingData(f"--data_dir={data_dir} has no {name}: neither {' nor '.join(map(str, folders + tables))} exists")


def _read_table(path: pathlib.Path, name: str) -> dict[str, list[LabelledPair]]:
    """A .tsv with a header that names sentence1, sentence2, split and the label's column."""
    columns = ("sentence1", "sentence2", LABEL_COLUMNS[name])
    splits = {split: [] for split in SPLITS}
    left_out = 0
    for place, row in table_rows(path, (*columns, "split")):
        if row["split"] not in splits:
            raise ValueError(f"{place}: the split {row['split']!r} is none of {', '.join(SPLITS)}")
        pair = _pair(place, name, *(row[column] for column in columns))
        if pair is None:
            left_out += 1
        else:
            splits[row["split"]].append(pair)
    log_left_out(path, left_out, WITHOUT_MAJORITY)
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    for split in SPLITS[1:] if name == "snli" else SPLITS:
        if split not in splits:
            raise ValueError(f"{path} has no row of the split {split!r}; it has {', '.join(splits) or 'no rows'}")
    return splits


def _read_sick_file(folder: pathlib.Path, split: str) -> list[LabelledPair]:
    columns = ("sentence_a", "sentence_b", "entailment_judgment")
    path = folder / SICK_FILES[split]
    pairs = [_pair(place, "sicke", *(row[column] for column in columns)) for place, row in table_rows(path, columns)]
    if not pairs:
        raise ValueError(f"{path} has no pairs")
    return pairs


def _read_snli_files(folder: pathlib.Path, split: str) -> list[LabelledPair]:
    """The files s1, s2 and labels, with one sentence or label per line."""
    paths = [folder / f"{column}.{split}" for column in ("s1", "s2", "labels")]
    pairs, left_out = [], 0
    for lines in aligned_lines(*paths):
        pair = _pair(lines[0][0], "snli", *(text for _, text in lines))
        if pair is None:
            left_out += 1
        else:
            pairs.append(pair)
    log_left_out(folder, left_out, WITHOUT_MAJORITY)
    if not pairs:
        raise ValueError(f"{paths[0]} has no pairs")
    return pairs


def _pair(place: str, name: str, sentence1: str, sentence2: str, label: str) -> LabelledPair | None:
    """None for a pair of SNLI without a majority label."""
    for column, text in (("first", sentence1), ("second", sentence2)):
        if not text.strip():
            raise ValueError(f"{place}: the {column} sentence is empty")
    label = label.strip().lower()
    if name == "snli" and label == NO_MAJORITY:
        return None
    if label not in LABELS:
        raise ValueError(f"{place}: the label {label!r} is none of {', '.join(LABELS)}")
    return LabelledPair(sentence1, sentence2, LABELS.index(label))
