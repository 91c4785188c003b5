"""Semantic textual similarity: Spearman correlation of cosines with human scores.

Legend: n = pairs, d = embedding width.
"""

import functools
import math
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.embedding import EncodeFunction, unit_embeddings
from evaluation.lines import numbered_lines
from evaluation.metrics import pearson, spearman
from evaluation.task import Result, Scores, Task

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

SEVEN = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")
TASK_FILES = {"sickr": "sick"}  # tasks whose file has another name
SUFFIXES = (".tsv", ".tsv.gz")
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


def evaluate_sts(encode: EncodeFunction, pairs: list[StsPair]) -> StsScores:
    """Spearman correlation between the cosines of the pairs' embeddings and their human scores."""
    first, second = [pair.sentence1 for pair in pairs], [pair.sentence2 for pair in pairs]
    embeddings = unit_embeddings(encode, first + second)
    cosines = np.einsum("nd,nd->n", embeddings[:len(pairs)], embeddings[len(pairs):], dtype=np.float64)
    human_scores = np.array([pair.score for pair in pairs])
    return StsScores(spearman(cosines, human_scores), cosines, human_scores)


def sts_files(data_dir: str) -> dict[str, pathlib.Path]:
    """{task: file} of the STS files in data_dir/eval, or in data_dir itself if it has no folder eval."""
    if not pathlib.Path(data_dir or ".").is_dir():
        raise ValueError(f"--data_dir={data_dir} is not a folder")
    folder = pathlib.Path(data_dir, "eval")
    folder = folder if folder.is_dir() else folder.parent
    names = {file: task for task, file in TASK_FILES.items()}
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(SUFFIXES):
            continue
        _, header = next(numbered_lines(path), ("", ""))
        if set(STS_COLUMNS) <= set(header.split("\t")):
            name = path.name.split(".tsv")[0]
            files[names.get(name, name)] = path
    return files


def read_task(data_dir: str, name: str, split: str) -> Task:
    files = sts_files(data_dir)
    if name not in files:
        raise ValueError(f"--suite={name} is unknown; --data_dir={data_dir} has {', '.join(files) or 'no STS files'}")
    pairs = read_sts(files[name], split)
    texts = [text for pair in pairs for text in pair[:2]]
    return Task(name, texts, functools.partial(_score, name=name, split=split, pairs=pairs))


def _score(embedder: "Embedder", name: str, split: str, pairs: list[StsPair]) -> Scores:
    scores = evaluate_sts(embedder, pairs)
    values = {"cosine_spearman": scores.spearman, "cosine_pearson": pearson(scores.cosines, scores.human_scores)}
    items = {"sentence1": [pair.sentence1 for pair in pairs], "sentence2": [pair.sentence2 for pair in pairs],
             "score": scores.human_scores.tolist(), "cosine": scores.cosines.tolist(), "part": [name] * len(pairs)}
    return Scores([Result(name, split, metric, 100 * value, len(pairs)) for metric, value in values.items()], items)
