"""Evaluation tasks and their scores."""

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it imports JAX, which starts only once the flags make sense
    from evaluation.embedder import Embedder


class MissingData(ValueError):
    """The files of a task of --suite are not in --data_dir."""


def data_folder(data_dir: str) -> pathlib.Path:
    """--data_dir as a path (empty: the present folder); ValueError if it is not a folder."""
    folder = pathlib.Path(data_dir or ".")
    if not folder.is_dir():
        raise ValueError(f"--data_dir={data_dir} is not a folder: give the one with the files of --suite")
    return folder


class Result(NamedTuple):
    """One line of results.json."""

    task: str  # a part of a task is task:part, sts12:MSRpar or ntrex:deu
    split: str
    metric: str
    value: float  # x 100
    n: int  # items that the value is a mean of, or pairs that are correlated


class Scores(NamedTuple):
    """The results of a task, the headline first, and its values per item, which reports draw and resample.

    items: columns of equal length, plain lists of numbers or strings. Tasks that correlate cosines have sentence1,
    sentence2, score, cosine and part. Others have one column per metric with its value for each item, x 1, so that a
    result is the mean of its column, and a column part if there are parts (languages).
    """

    results: list[Result]
    items: dict[str, list]


class Task(NamedTuple):
    """A data set that has been read and checked; nothing is embedded yet."""

    name: str
    texts: Sequence[str]  # embedded together with those of all other tasks before any is scored; may be empty
    score: Callable[["Embedder"], Scores]
