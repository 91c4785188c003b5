"""An independent float64 oracle of the masked log-sum-exps, gradients and statistics, and random cases for it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    queries: np.ndarray  # [b, D] float64, exactly representable in the tested dtype
    keys: np.ndarray  # [N, D]
    scale: float
    query_labels: np.ndarray | None  # [b, 2]
    key_labels: np.ndarray | None  # [N, 2]
    positives: np.ndarray | None  # [b]
    row_cotangent: np.ndarray  # [b]
    column_cotangent: np.ndarray  # [N]


class Answer(NamedTuple):
    row_lse: np.ndarray
    column_lse: np.ndarray
    query_gradient: np.ndarray
    key_gradient: np.ndarray
    scale_gradient: np.ndarray
    hardest_negative: np.ndarray  # [b]
    num_left_out: np.ndarray  # [b]


def random_case(seed: int, rows: int, columns: int, width: int, *, dtype=np.float32, labels: str = "none",
                scale: float = 20.0) -> Case:
    """labels: "none"; "duplicates" (texts of a small set, some keys without anchor); "empty" (empty keys too)."""
    random = np.random.default_rng(seed)

    def unit(count):
        vectors = random.standard_normal((count, width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(jnp.asarray(vectors, dtype).astype(jnp.float32), np.float64)

    query_labels = key_labels = positives = None
    if labels != "none":
        positives = random.integers(0, columns, rows).astype(np.int32)
        key_labels = random.integers(0, max(columns // 2, 2), (columns, 2)).astype(np.int32)
        key_labels[random.random(columns) < 0.3, 1] = -1
        query_labels = random.integers(0, max(columns // 2, 2), (rows, 2)).astype(np.int32)
        query_labels[:, 1] = key_labels[positives, 0]
        if labels == "empty":
            empty = random.random(columns) < 0.4
            empty[0] = True
            key_labels[empty] = -1
    return Case(unit(rows), unit(columns), scale, query_labels, key_labels, positives,
                random.standard_normal(rows), random.standard_normal(columns))


def left_out(case: Case) -> np.ndarray:  # [b, N] bool
    """In the words of the definition."""
    result = np.zeros((len(case.queries), len(case.keys)), bool)
    if case.key_labels is None:
        return result
    key_text, anchor_text = case.key_labels.T
    if case.query_labels is not None:
        query_text, positive_text = case.query_labels.T[:, :, None]
        is_known_positive = (anchor_text == query_text) & (anchor_text != -1)
        result |= (key_text == positive_text) | (key_text == query_text) | is_known_positive
        result &= ~is_own_positive(case)
    return result | (key_text == -1)


def is_own_positive(case: Case) -> np.ndarray:  # [b, N] bool
    own = np.full(len(case.queries), -1) if case.positives is None else case.positives
    return np.arange(len(case.keys)) == own[:, None]


def answer(case: Case) -> Answer:
    products = case.queries @ case.keys.T
    is_left_out = left_out(case)
    weights = ~is_left_out
    scores = case.scale * products
    negatives = np.where(is_left_out | is_own_positive(case), -np.inf, scores)
    is_empty = np.zeros(len(case.keys), bool) if case.key_labels is None else case.key_labels[:, 0] == -1
    row_lse, row_softmax = _logsumexp(scores, weights, axis=1)
    column_lse, column_softmax = _logsumexp(scores, weights, axis=0)
    score_gradient = case.row_cotangent[:, None] * row_softmax + case.column_cotangent[None, :] * column_softmax
    return Answer(row_lse, column_lse, case.scale * score_gradient @ case.keys,
                  case.scale * score_gradient.T @ case.queries, np.sum(score_gradient * products),
                  negatives.max(axis=1), (is_left_out & ~is_empty).sum(axis=1).astype(np.float64))


def _logsumexp(scores, weights, axis):
    shift = np.max(scores, axis=axis, keepdims=True)
    terms = np.where(weights, np.exp(scores - shift), 0.0)
    total = terms.sum(axis=axis, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.squeeze(np.log(total) + shift, axis)
    return lse, terms / np.where(total == 0, 1.0, total)
