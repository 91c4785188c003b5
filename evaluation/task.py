"""What every evaluation task is, and what its scores are."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it imports JAX, which starts only once the flags make sense
    from evaluation.embedder import Embedder


class MissingData(ValueError):
    """The files of a task of --suite are not in --data_dir."""


class Result(NamedTuple):
    """One line of results.json."""

    task: str  # a part of a task is task:part, sts12:MSRpar or ntrex:deu
    split: str
    metric: str
    value: float  # x 100
    n: int  # what the value is a mean over, or the pairs that are correlated


class Scores(NamedTuple):
    """The results of a task, the headline first, and its values by item, which reports draw and resample.

    items: columns of one length, plain lists of numbers or strings. Tasks whose cosines are correlated have sentence1,
    sentence2, score, cosine and part. Others have their metrics' values by item, x 1, under the metrics' names, so that
    a result is the mean of its column, and, where there are parts (languages), the column part.
    """

    results: list[Result]
    items: dict[str, list]


class Task(NamedTuple):
    """A data set that is read and checked; nothing is embedded yet."""

    name: str
    texts: Sequence[str]  # embedded together with those of all other tasks before any is scored; may be empty
    score: Callable[["Embedder"], Scores]
