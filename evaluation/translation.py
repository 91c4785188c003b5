"""Distillation into further languages: does a translation get its source's embedding (Reimers and Gurevych 2020)?

Translation accuracy asks for the nearest text, the mean squared error for the teacher's embedding itself. Cross-lingual
STS needs nothing of its own: it is an STS file (evaluation/sts.py) whose sentence2 is in another language.

Legend: n = rows of the file, m = rows that have a translation, d = embedding width.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.embedding import EncodeFunction, embeddings_of, unit_length
from evaluation.heldout import paired_ranks
from evaluation.lines import numbered_lines
from evaluation.task import Result, Scores, Task

if TYPE_CHECKING:
    from evaluation.embedder import Embedder


class ParallelTexts(NamedTuple):
    source_language: str
    sources: list[str]  # n
    translations: dict[str, list[str]]  # language -> n texts, "" where there is none


class TranslationScores(NamedTuple):
    accuracy: float  # in [0, 1]: mean of the two below
    source_to_target: float
    target_to_source: float
    mse: float | None  # mean over rows and dimensions; None without a teacher
    rows: int


def read_parallel(path: str | pathlib.Path, languages: Sequence[str] = ()) -> ParallelTexts:
    """Reads a text and its translations a line: column 0 is the source language, each other column another one.

    The file is .tsv or .tsv.gz, unquoted, with a header of language names; an empty cell is no translation. `languages`
    chooses some of the columns, in this order; empty: all. Raises ValueError naming file:line for a header without two
    different names, a wrong number of columns, an empty source and a line without any translation; and naming the
    language if it has no column or no row.
    """
    lines = numbered_lines(path)
    place, header = next(lines, (f"{path}:1", ""))
    names = [name.strip() for name in header.split("\t")]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{place}: the header must name two or more different languages; it has {', '.join(names)}")
    sources, columns = [], {name: [] for name in names[1:]}
    for place, line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(names):
            raise ValueError(f"{place}: {len(cells)} tab-separated columns, but the header has {len(names)}")
        if not cells[0]:
            raise ValueError(f"{place}: the text in {names[0]}, the source language, is empty")
        if not any(cells[1:]):
            raise ValueError(f"{place}: no translation")
        sources.append(cells[0])
        for name, cell in zip(columns, cells[1:]):
            columns[name].append(cell)
    for language in languages or columns:
        if not any(columns.get(language, ())):
            raise ValueError(f"{path} has no row in {language}; it has "
                             + ", ".join(f"{sum(map(bool, texts))} in {name}" for name, texts in columns.items()))
    return ParallelTexts(names[0], sources, {language: columns[language] for language in languages or columns})


def mean_squared_error(targets: np.ndarray, embeddings: np.ndarray) -> float:
    """mean over rows and dimensions of (target - embedding)^2, both [m, d]; ValueError if their widths differ."""
    if targets.shape != embeddings.shape:
        raise ValueError(f"the teacher's embeddings are {targets.shape}, the student's {embeddings.shape}: "
                         "a mean squared error needs equal widths")
    return float(np.square(targets.astype(np.float64) - embeddings).mean())


def share_found(queries: np.ndarray, candidates: np.ndarray, texts: list[str]) -> float:
    """Share of the queries i for which candidate i has the largest cosine of all m candidates.

    Candidates of the same text are one candidate, so that finding any of them is correct; a tie with another
    text is not.

    Args:
        queries: [m, d] float32 of unit length.
        candidates: [m, d] float32 of unit length.
        texts: the m candidates' texts.
    """
    _, first_rows, paired = np.unique(np.array(texts, object), return_index=True, return_inverse=True)
    return float((paired_ranks(queries, candidates[first_rows], paired) == 1).mean())


def evaluate_translations(
    encode: EncodeFunction, parallel: ParallelTexts, teacher: EncodeFunction | None = None
) -> dict[str, TranslationScores]:
    """Scores of each language; the sources of the translation accuracy are embedded by the same model.

    The mean squared error is between teacher(source) and encode(translation), as the two functions give them; the
    published figures are of embeddings that are not normalised.
    """
    sources = embeddings_of(encode, parallel.sources)  # [n, d]
    targets = embeddings_of(teacher, parallel.sources) if teacher else None
    scores = {}
    for language, texts in parallel.translations.items():
        rows = [row for row, text in enumerate(texts) if text]
        source_texts, texts = [parallel.sources[row] for row in rows], [texts[row] for row in rows]
        translations = embeddings_of(encode, texts)  # [m, d]
        unit_sources, unit_translations = unit_length(sources[rows]), unit_length(translations)
        forth = share_found(unit_sources, unit_translations, texts)
        back = share_found(unit_translations, unit_sources, source_texts)
        mse = None if targets is None else mean_squared_error(targets[rows], translations)
        scores[language] = TranslationScores((forth + back) / 2, forth, back, mse, len(rows))
    return scores


def read_task(path: str, languages: Sequence[str] = ()) -> Task:
    """--parallel: the task of one file; the mean squared error is scored too if the embedder has a teacher."""
    name, parallel = pathlib.Path(path).name.split(".tsv")[0], read_parallel(path, languages)
    texts = parallel.sources + [text for column in parallel.translations.values() for text in column if text]
    return Task(name, texts, functools.partial(_score, name=name, parallel=parallel))


def _score(embedder: "Embedder", name: str, parallel: ParallelTexts) -> Scores:
    results = []
    for language, scores in evaluate_translations(embedder, parallel, embedder.teacher).items():
        values = {"translation_accuracy": scores.accuracy} | ({} if scores.mse is None else {"mse": scores.mse})
        results += [Result(f"{name}:{language}", "heldout", metric, 100 * value, scores.rows)
                    for metric, value in values.items()]
    return Scores(results, {})
