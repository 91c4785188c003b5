"""Metrics of ranked candidates per query, over the candidates of all queries in flat arrays.

Legend: Q = queries, M = candidates of all queries together.
"""

import numpy as np


def average_precisions(queries: np.ndarray, relevant: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AP = mean over the relevant candidates of the precision among all that score at least as high. [Q] float64.

    Tied scores share one threshold, as in scikit-learn's average_precision_score.

    Args:
        queries: [M] int, the query of each candidate, 0 .. Q - 1, in any order.
        relevant: [M] bool.
        scores: [M].

    Raises ValueError for scores that are not finite, unequal lengths and a query without a relevant candidate.
    """
    _check(queries, relevant, scores)
    order = np.lexsort((-scores, queries))
    queries, relevant, scores = queries[order], relevant[order], scores[order]
    new_query = np.append(True, queries[1:] != queries[:-1])
    tie_starts = np.flatnonzero(new_query | np.append(True, scores[1:] != scores[:-1]))
    sizes = np.diff(np.append(tie_starts, len(scores)))
    last = np.repeat(tie_starts + sizes - 1, sizes)  # the last place that ties with each candidate
    first = np.flatnonzero(new_query)[queries]  # the first place of its query
    found = np.append(0, np.cumsum(relevant))
    precision = (found[last + 1] - found[first]) / (last + 1 - first)
    return np.bincount(queries, relevant * precision) / np.bincount(queries, relevant)


def reciprocal_ranks(queries: np.ndarray, relevant: np.ndarray, scores: np.ndarray, cutoff: int = 10) -> np.ndarray:
    """1 / rank of the relevant candidate that scores highest, 0 beyond the cutoff. [Q] float64.

    Ties are pessimistic: an irrelevant candidate with the same score ranks before it. Arguments and errors as above.
    """
    _check(queries, relevant, scores)
    best = np.full(queries.max() + 1, -np.inf)
    np.maximum.at(best, queries[relevant], scores[relevant])
    ranks = 1 + np.bincount(queries, ~relevant & (scores >= best[queries]))
    return np.where(ranks <= cutoff, 1 / ranks, 0.0)


def _check(queries: np.ndarray, relevant: np.ndarray, scores: np.ndarray) -> None:
    if not len(queries) == len(relevant) == len(scores) > 0:
        raise ValueError(f"{len(queries)} queries, {len(relevant)} judgements and {len(scores)} scores of candidates; "
                         "there must be one of each, and at least one candidate")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores of candidates are not finite")
    found = np.bincount(queries, relevant)
    if not found.all():
        raise ValueError(f"{(found == 0).sum()} of {len(found)} queries have no relevant candidate, "
                         f"first query {found.argmin()}")
