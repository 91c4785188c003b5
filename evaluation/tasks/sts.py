"""Semantic textual similarity: correlation of the cosines of pairs of sentences with human scores.

The published figure is Spearman's correlation over all pairs of a task; for STS12 to STS16 over all parts of a year at
once ("all", as in SimCSE and SCT). The mean over the parts is reported beside it, under its own name. The parts of a
cross-lingual set are languages: each is scored separately, and the mean over them comes first. All x 100.

Files: evaluation/files/sts_files.py; where they are found: evaluation/files/sts_places.py.

Legend: n = pairs, D = embedding width.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import logging

from evaluation.files.sts_files import StsPair
from evaluation.files.sts_files import read_sts as read_sts  # for callers that score one file
from evaluation.files.sts_places import StsSet, read_set
from evaluation.measures.correlation import pearson, spearman
from evaluation.task import Result, Scores, Task
from inference.embedding import EncodeFunction, unit_embeddings

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

SEVEN = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")
METRICS = {"cosine_spearman": spearman, "cosine_pearson": pearson}


class StsScores(NamedTuple):
    spearman: float  # in [-1, 1]
    cosines: np.ndarray  # [n] float64
    human_scores: np.ndarray  # [n] float64


def evaluate_sts(encode: EncodeFunction, pairs: list[StsPair]) -> StsScores:
    """Spearman correlation between the cosines of the pairs' embeddings and their human scores."""
    cosines, human_scores = pair_cosines(encode, pairs), np.array([pair.score for pair in pairs])
    return StsScores(spearman(cosines, human_scores), cosines, human_scores)


def pair_cosines(encode: EncodeFunction, pairs: list[StsPair]) -> np.ndarray:
    """cos(encode(sentence1), encode(sentence2)) of each pair. [n] float64."""
    embeddings = unit_embeddings(encode, [pair.sentence1 for pair in pairs] + [pair.sentence2 for pair in pairs])
    return np.einsum("nd,nd->n", embeddings[:len(pairs)], embeddings[len(pairs):], dtype=np.float64)


def read_task(data_dir: str, name: str, split: str, other_suites: Sequence[str] = ()) -> Task:
    """The task `name` as found in data_dir (see read_set); its results are those of score_set."""
    sts_set = read_set(data_dir, name, split, other_suites)
    texts = [text for pairs in sts_set.parts.values() for pair in pairs for text in pair[:2]]
    return Task(name, texts, functools.partial(score_set, sts_set=sts_set))


def score_set(embedder: "Embedder", sts_set: StsSet) -> Scores:
    """Scores over all pairs (unless the parts are languages), then the mean over the parts, then the parts.

    A part without a correlation (constant scores, one pair) is left out with a warning, and then there is no mean.
    Raises ValueError if nothing is left.
    """
    name, split = sts_set.name, sts_set.split
    pairs = [pair for part in sts_set.parts.values() for pair in part]
    part_of = np.repeat(list(sts_set.parts), [len(part) for part in sts_set.parts.values()])
    cosines, human_scores = pair_cosines(embedder, pairs), np.array([pair.score for pair in pairs])
    results = [] if sts_set.by_language else correlations(name, split, cosines, human_scores)
    if sts_set.by_language or len(sts_set.parts) > 1:
        results += _scores_of_parts(name, split, part_of, cosines, human_scores)
    items = {"sentence1": [pair.sentence1 for pair in pairs], "sentence2": [pair.sentence2 for pair in pairs],
             "score": human_scores.tolist(), "cosine": cosines.tolist(), "part": part_of.tolist()}
    return Scores(results, items)


def correlations(task: str, split: str, cosines: np.ndarray, human_scores: np.ndarray) -> list[Result]:
    """Spearman's and Pearson's of cosines [n] with human_scores [n]."""
    return [Result(task, split, metric, 100 * correlation(cosines, human_scores), len(cosines))
            for metric, correlation in METRICS.items()]


def _scores_of_parts(
    name: str, split: str, part_of: np.ndarray, cosines: np.ndarray, human_scores: np.ndarray
) -> list[Result]:
    """The mean over the parts, if each has a score, and the parts."""
    of_parts, failed = [], {}
    for part in dict.fromkeys(part_of.tolist()):
        rows = part_of == part
        try:
            of_parts += correlations(f"{name}:{part}", split, cosines[rows], human_scores[rows])
        except ValueError as error:
            logging.warning("%s:%s has no score, so there is no mean over the parts: %s", name, part, error)
            failed[part] = error
    if not of_parts:
        raise ValueError(f"no part has a score; the first, {next(iter(failed))}: {next(iter(failed.values()))}")
    return of_parts if failed else _means(name, split, of_parts) + of_parts


def _means(name: str, split: str, results: list[Result]) -> list[Result]:
    values = {metric: [result.value for result in results if result.metric == metric] for metric in METRICS}
    return [Result(name, split, f"{metric}_mean", float(np.mean(of_parts)), len(of_parts))
            for metric, of_parts in values.items()]


def mean_of_seven(results: list[Result]) -> Result | None:
    """Mean cosine_spearman of the SEVEN, as published; of two to six under a name that says so; of fewer None."""
    values = {result.task: result for result in results if result.task in SEVEN and result.metric == "cosine_spearman"}
    if len(values) < 2:
        return None
    name = "sts_mean"
    if missing := [task for task in SEVEN if task not in values]:
        name = f"sts_mean_of_{len(values)}"
        logging.warning("%s is not the published mean: it lacks %s", name, ", ".join(missing))
    split = next(iter(values.values())).split
    mean = float(np.mean([result.value for result in values.values()]))
    return Result(name, split, "cosine_spearman", mean, len(values))
