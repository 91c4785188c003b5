"""Paired bootstrap: is the second model's score higher than the first's beyond the luck of the test pairs?

Both models are scored on the same resamples of the pairs, drawn with replacement (Efron and Tibshirani, 1993).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evaluation.heldout import mean_reciprocal_rank
from evaluation.metrics import spearman


class ScoreDifference(NamedTuple):
    difference: float  # score of the second model - score of the first, on all pairs
    low: float  # percentile confidence interval of the difference
    high: float
    share_not_above: float  # share of resamples in which the second model is not ahead: a one-sided p-value


def bootstrap_spearman(
    first_cosines: np.ndarray, second_cosines: np.ndarray, human_scores: np.ndarray, **options
) -> ScoreDifference:
    """Difference of the Spearman correlations with human_scores [n] of two models' cosines [n]."""
    return _paired_bootstrap(
        lambda rows: spearman(first_cosines[rows], human_scores[rows]),
        lambda rows: spearman(second_cosines[rows], human_scores[rows]),
        [len(first_cosines), len(second_cosines), len(human_scores)], **options,
    )


def bootstrap_mrr(first_ranks: np.ndarray, second_ranks: np.ndarray, **options) -> ScoreDifference:
    """Difference of the MRR@10 of two models, from their ranks [n] of the same queries."""
    return _paired_bootstrap(
        lambda rows: mean_reciprocal_rank(first_ranks[rows]),
        lambda rows: mean_reciprocal_rank(second_ranks[rows]),
        [len(first_ranks), len(second_ranks)], **options,
    )


def _paired_bootstrap(
    first_score: Callable[[np.ndarray], float], second_score: Callable[[np.ndarray], float], lengths: list[int],
    *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0,
) -> ScoreDifference:
    if len(set(lengths)) != 1:
        raise ValueError(f"a paired bootstrap compares scores of the same pairs; their numbers are {lengths}")
    num_pairs = lengths[0]
    generator = np.random.default_rng(seed)
    everything = np.arange(num_pairs)
    differences = np.empty(resamples)
    for index in range(resamples):
        rows = generator.integers(num_pairs, size=num_pairs)
        differences[index] = second_score(rows) - first_score(rows)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ScoreDifference(
        second_score(everything) - first_score(everything), float(low), float(high), float((differences <= 0).mean())
    )
