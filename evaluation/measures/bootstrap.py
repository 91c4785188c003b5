"""Bootstrap: how uncertain is a score, or the difference of two models' scores, given the choice of the test items?

Each resample is the score of items that are drawn with replacement; the 95 % interval reaches from the 2.5th to the
97.5th percentile of the resamples. Two models are compared on the same draws, that is, paired (Efron and Tibshirani,
1993).

Legend: n = items (pairs of sentences, queries).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evaluation.measures.correlation import spearman
from evaluation.tasks.heldout import inverse_ranks

Score = Callable[[np.ndarray], float]  # of the items at rows [n] int, which repeat some and leave out others


class Interval(NamedTuple):
    low: float
    high: float


class ScoreDifference(NamedTuple):
    difference: float  # score of the second model - score of the first, on all pairs
    low: float  # percentile confidence interval of the difference
    high: float
    share_not_above: float  # share of resamples in which the second model is not ahead: a one-sided p-value


def spearman_score(x: np.ndarray, y: np.ndarray) -> Score:
    """Spearman's rho of x[rows] and y[rows], exactly; of x [n] and y [n].

    The values are sorted once: a value's average rank in a draw follows from how often it and smaller ones are drawn.
    Raises ValueError if rho is undefined: on x and y themselves (evaluation/measures/correlation.py) or on a draw.
    """
    spearman(x, y)  # raises if it is undefined
    num_pairs = len(x)
    order_x, order_y = (np.unique(values, return_inverse=True)[1] for values in (x, y))

    def score(rows: np.ndarray) -> float:
        x_ranks, y_ranks = (_average_ranks(order[rows]) - (num_pairs + 1) / 2 for order in (order_x, order_y))
        scale = np.sqrt((x_ranks @ x_ranks) * (y_ranks @ y_ranks))
        if scale == 0:
            raise ValueError(f"a draw from the {num_pairs} pairs has only one value: they are too few for a bootstrap")
        return float(x_ranks @ y_ranks / scale)

    return score


def _average_ranks(order: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean, of values given as places among the sorted distinct ones."""
    counts = np.bincount(order)
    return (np.cumsum(counts) - (counts - 1) / 2)[order]


def mean_score(values: np.ndarray) -> Score:
    """Mean of values[rows], of values [n]."""
    values = np.asarray(values, np.float64)
    return lambda rows: float(values[rows].mean())


def resampled(score: Score, num_items: int, *, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """[resamples]: the score of each draw of n items. Equal n and seed give the same draws: scores are then paired."""
    generator = np.random.default_rng(seed)
    return np.array([score(generator.integers(num_items, size=num_items)) for _ in range(resamples)])


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The interval that holds the middle share `confidence` of the values [resamples]."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def bootstrap_spearman(
    first_cosines: np.ndarray, second_cosines: np.ndarray, human_scores: np.ndarray, **options
) -> ScoreDifference:
    """Difference of the Spearman correlations with human_scores [n] of two models' cosines [n]."""
    lengths = [len(first_cosines), len(second_cosines), len(human_scores)]
    _check_paired(lengths)
    scores = [spearman_score(cosines, human_scores) for cosines in (first_cosines, second_cosines)]
    return _paired_bootstrap(*scores, lengths[0], **options)


def bootstrap_mrr(first_ranks: np.ndarray, second_ranks: np.ndarray, **options) -> ScoreDifference:
    """Difference of the MRR@10 of two models, from their ranks [n] of the same queries."""
    _check_paired([len(first_ranks), len(second_ranks)])
    scores = [mean_score(inverse_ranks(ranks)) for ranks in (first_ranks, second_ranks)]
    return _paired_bootstrap(*scores, len(first_ranks), **options)


def _check_paired(lengths: list[int]) -> None:
    if len(set(lengths)) != 1:
        raise ValueError(f"a paired bootstrap compares scores of the same items, but there are {lengths} of them")


def _paired_bootstrap(
    first: Score, second: Score, num_items: int, *, confidence: float = 0.95, **options
) -> ScoreDifference:
    differences = resampled(second, num_items, **options) - resampled(first, num_items, **options)
    everything = np.arange(num_items)
    return ScoreDifference(
        second(everything) - first(everything), *percentile_interval(differences, confidence),
        float((differences <= 0).mean()),
    )
