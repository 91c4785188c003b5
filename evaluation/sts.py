"""Semantic textual similarity: Spearman correlation of cosines with human scores.

Legend: n = pairs, d = embedding width.
"""

import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evaluation.lines import numbered_lines

EncodeFunction = Callable[[list[str]], np.ndarray]  # n texts -> [n, d]
STS_COLUMNS = ("sentence1", "sentence2", "score")


class StsPair(NamedTuple):
    sentence1: str
    sentence2: str
    score: float


class StsScores(NamedTuple):
    spearman: float  # in [-1, 1]
    cosines: np.ndarray  # [n] float64
    human_scores: np.ndarray  # [n] float64


def read_sts(path: str | pathlib.Path, split: str = "") -> list[StsPair]:
    """Reads the pairs of one split of an STS file; an empty `split` reads all.

    The file is .tsv or .tsv.gz, unquoted, with a header that names at least the columns sentence1, sentence2 and score,
    and split where one is chosen. Raises ValueError naming file:line for a wrong number of columns, a score that is not
    a finite number and an empty sentence, in any split.
    """
    lines = numbered_lines(path)
    place, header = next(lines, (f"{path}:1", ""))
    columns = header.split("\t")
    missing = [name for name in STS_COLUMNS + (("split",) if split else ()) if name not in columns]
    if missing:
        raise ValueError(f"{place}: the header lacks {', '.join(missing)}; it has {', '.join(columns)}")
    pairs, splits = [], set()
    for place, line in lines:
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise ValueError(f"{place}: {len(fields)} tab-separated columns, but the header has {len(columns)}")
        row = dict(zip(columns, fields))
        pair = _pair(row, place)
        splits.add(row.get("split", ""))
        if not split or row["split"] == split:
            pairs.append(pair)
    if not pairs:
        known = ", ".join(sorted(splits)) or "no rows"
        raise ValueError(f"{path} has no row of the split {split!r}; it has {known}")
    return pairs


def _pair(row: dict[str, str], place: str) -> StsPair:
    for name in ("sentence1", "sentence2"):
        if not row[name].strip():
            raise ValueError(f"{place}: {name} is empty")
    try:
        score = float(row["score"])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{place}: score is not a finite number: {row['score']!r}")
    return StsPair(row["sentence1"], row["sentence2"], score)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks. [n] -> [n] float64."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the largest rank of each distinct value
    return (last - (counts - 1) / 2)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """rho = Pearson correlation of the average ranks of x [n] and y [n].

    Raises ValueError where it is undefined: unequal or too short inputs, values that are not finite, a constant input.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"Spearman correlation takes two arrays of one length >= 2, not {x.shape} and {y.shape}")
    for name, values in (("first", x), ("second", y)):
        if not np.isfinite(values).all():
            count = f"{(~np.isfinite(values)).sum()} of {len(values)}"
            raise ValueError(f"Spearman correlation: {count} values of the {name} input are not finite")
        if (values == values[0]).all():
            raise ValueError(f"Spearman correlation is undefined: all {len(values)} values of the {name} input are "
                             f"{values[0]}")
    x, y = (ranks - ranks.mean() for ranks in (average_ranks(x), average_ranks(y)))
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def embeddings_of(encode: EncodeFunction, texts: list[str]) -> np.ndarray:
    """Embeddings [n, d] float32 as encode gives them; ValueError if they are not one for each text, or not finite."""
    embeddings = np.asarray(encode(texts), np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        raise ValueError(f"encode gave {embeddings.shape} for {len(texts)} texts; expected [{len(texts)}, d]")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(texts)} embeddings are not finite, first that of {texts[bad[0]][:80]!r}")
    return embeddings


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Each of the embeddings [n, d] divided by its length; zero stays zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)


def unit_embeddings(encode: EncodeFunction, texts: list[str]) -> np.ndarray:
    """Embeddings [n, d] float32 of unit length (see embeddings_of)."""
    return unit_length(embeddings_of(encode, texts))


def evaluate_sts(encode: EncodeFunction, pairs: list[StsPair]) -> StsScores:
    """Spearman correlation between the cosines of the pairs' embeddings and their human scores."""
    first, second = [pair.sentence1 for pair in pairs], [pair.sentence2 for pair in pairs]
    embeddings = unit_embeddings(encode, first + second)
    cosines = np.einsum("nd,nd->n", embeddings[:len(pairs)], embeddings[len(pairs):], dtype=np.float64)
    human_scores = np.array([pair.score for pair in pairs])
    return StsScores(spearman(cosines, human_scores), cosines, human_scores)
