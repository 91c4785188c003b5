"""Retrieval among held-out pairs: does the first text of a pair find the second one among those of all pairs?

Legend: n = pairs, M = candidates, D = embedding width.
"""

import functools
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.examples import NO_PROMPTS, BadLine, Prompts
from data.formats import parse_line
from evaluation.files.lines import file_title, numbered_lines
from evaluation.task import Result, Scores, Task
from inference.embedding import EncodeFunction, unit_embeddings

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

QUERY_BLOCK = 1024  # queries compared with all candidates at once


class RetrievalScores(NamedTuple):
    accuracy_at_1: float  # in [0, 1]
    mrr_at_10: float  # in [0, 1]
    ranks: np.ndarray  # [n] int64, from 1


def read_pairs(path: str | pathlib.Path) -> list[tuple[str, str]]:
    """Reads (query, paired text) from a .jsonl or .jsonl.gz file in any training format (data/formats.py).

    The paired text of a line is its first positive; a set gives its first two texts. Raises ValueError naming file:line
    for a line that is in none of the training formats and for an empty text.
    """
    pairs = []
    for place, line in numbered_lines(path):
        try:
            pairs.append(parse_line(line.encode(), "json").texts[:2])
        except BadLine as error:
            raise ValueError(f"{place}: {error}") from error
    if not pairs:
        raise ValueError(f"{path} has no lines; retrieval needs held-out pairs")
    return pairs


def paired_ranks(queries: np.ndarray, candidates: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """rank_i = number of candidates whose cosine with query i is at least that of candidate paired_i, itself included.

    Ties are pessimistic: an equally near candidate ranks before the paired one.

    Args:
        queries: [n, D] float32 of unit length.
        candidates: [M, D] float32 of unit length, distinct texts.
        paired: [n] int, row of each query's paired text in `candidates`.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        cosines = queries[block] @ candidates.T  # [QUERY_BLOCK, M]
        own = np.take_along_axis(cosines, paired[block, None], axis=1)
        ranks[block] = (cosines >= own).sum(axis=1)
    return ranks


def inverse_ranks(ranks: np.ndarray, cutoff: int = 10) -> np.ndarray:
    """1 / rank of each query, 0 beyond the cutoff. [n] -> [n] float64."""
    return np.where(ranks <= cutoff, 1 / ranks, 0.0)


def mean_reciprocal_rank(ranks: np.ndarray, cutoff: int = 10) -> float:
    """Mean over queries of 1 / rank, 0 beyond the cutoff."""
    return float(inverse_ranks(ranks, cutoff).mean())


def evaluate_pairs(
    encode: EncodeFunction, pairs: list[tuple[str, str]], prompts: Prompts = NO_PROMPTS
) -> RetrievalScores:
    """accuracy@1 and MRR@10 of the paired text among the distinct paired texts of all pairs.

    Prompts are put before queries and candidates. Exact duplicates of a paired text are one candidate: finding any of
    them is correct.
    """
    queries = [prompts.query + query for query, _ in pairs]
    candidates = list(dict.fromkeys(text for _, text in pairs))
    row_of = {text: row for row, text in enumerate(candidates)}
    paired = np.array([row_of[text] for _, text in pairs])
    embeddings = unit_embeddings(encode, queries + [prompts.document + text for text in candidates])
    ranks = paired_ranks(embeddings[:len(queries)], embeddings[len(queries):], paired)
    return RetrievalScores(float((ranks == 1).mean()), mean_reciprocal_rank(ranks), ranks)


def read_task(path: str) -> Task:
    """--pairs: the task of one file. Task.texts is empty, because the model's prompts are still unknown."""
    name = file_title(path)
    return Task(name, (), functools.partial(_score, name=name, pairs=read_pairs(path)))


def _score(embedder: "Embedder", name: str, pairs: list[tuple[str, str]]) -> Scores:
    scores = evaluate_pairs(embedder.prompted, pairs, embedder.prompts)
    items = {
        "accuracy@1": (scores.ranks == 1).astype(float).tolist(),
        "mrr@10": inverse_ranks(scores.ranks).tolist(),
    }
    values = {"accuracy@1": scores.accuracy_at_1, "mrr@10": scores.mrr_at_10}
    return Scores([Result(name, "heldout", metric, 100 * value, len(pairs)) for metric, value in values.items()], items)
