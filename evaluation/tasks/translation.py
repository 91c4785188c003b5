"""Bitext: is the nearest translation of a text, by cosine, its own, and the nearest source of a translation?

Translation accuracy counts how often. The mean squared error compares with a teacher's embeddings, after distillation
into further languages (Reimers and Gurevych 2020). Cross-lingual STS is an STS file (evaluation/tasks/sts.py) whose
sentence2 is in another language.

Legend: n = rows that have a translation, D = embedding width.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.files.lines import file_title, numbered_lines
from evaluation.task import Result, Scores, Task
from evaluation.tasks.bitext import COMPLETE, Bitext, read_bitexts
from evaluation.tasks.heldout import paired_ranks
from inference.embedding import EncodeFunction, embeddings_of, unit_length

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

TASKS = tuple(COMPLETE)


class ParallelTexts(NamedTuple):
    source_language: str
    sources: list[str]  # one per row
    translations: dict[str, list[str]]  # language -> one per row, "" if there is none


class TranslationScores(NamedTuple):
    """Row by row."""

    from_source: np.ndarray  # [n] float64: 1 if the source's nearest translation is its own, else 0
    to_source: np.ndarray  # [n] float64: 1 if the translation's nearest source is its own, else 0
    squared_errors: np.ndarray | None  # [n] float64: mean over dimensions; None without a teacher

    def by_metric(self) -> dict[str, np.ndarray]:
        """{metric: [n]}; the metric is the mean of its column.

        translation_accuracy_from_source: sources search for their translations among all translations. _to_source:
        translations search for their sources among all sources. translation_accuracy is the mean of both.
        """
        columns = {
            "translation_accuracy": (self.from_source + self.to_source) / 2,
            "translation_accuracy_from_source": self.from_source,
            "translation_accuracy_to_source": self.to_source,
        }
        return columns | ({} if self.squared_errors is None else {"mse": self.squared_errors})

    @property
    def accuracy(self) -> float:
        return float(self.by_metric()["translation_accuracy"].mean())

    @property
    def mse(self) -> float | None:
        return None if self.squared_errors is None else float(self.squared_errors.mean())


def read_parallel(path: str | pathlib.Path) -> ParallelTexts:
    """Reads one text and its translations per line: column 0 is the source language, each other column another one.

    The file is .tsv or .tsv.gz, unquoted, with a header of language names; an empty cell is no translation.
    Raises ValueError naming file:line for a header without two different names, a wrong number of columns, an empty
    source and a line without any translation; and naming the language if it has no row.
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
    for language in columns:
        if not any(columns[language]):
            raise ValueError(f"{path} has no row in {language}; it has "
                             + ", ".join(f"{sum(map(bool, texts))} in {name}" for name, texts in columns.items()))
    return ParallelTexts(names[0], sources, columns)


def squared_errors(targets: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """mean over dimensions of (target - embedding)^2, both [n, D] -> [n] float64; ValueError if their widths differ."""
    if targets.shape != embeddings.shape:
        raise ValueError(f"the teacher's embeddings are {targets.shape}, the student's {embeddings.shape}: "
                         "a mean squared error needs equal widths")
    return np.square(targets.astype(np.float64) - embeddings).mean(axis=1)


def found(queries: np.ndarray, candidates: np.ndarray, texts: list[str]) -> np.ndarray:
    """[n] float64: 1 for the queries i for which candidate i has the largest cosine of all candidates, else 0.

    Candidates with the same text count as one, so finding any of them is correct; a tie with another text is not.
    sentence-transformers' TranslationEvaluator also accepts the same text, but breaks ties by the first row. LASER (by
    default) and MTEB accept only the row itself, so that all but one of several equal texts are errors.

    Args:
        queries: [n, D] float32 of unit length.
        candidates: [n, D] float32 of unit length.
        texts: the candidates' texts.
    """
    _, first_rows, paired = np.unique(np.array(texts, object), return_index=True, return_inverse=True)
    return (paired_ranks(queries, candidates[first_rows], paired) == 1).astype(np.float64)


def compare(
    bitext: Bitext, sources: np.ndarray, translations: np.ndarray, targets: np.ndarray | None
) -> TranslationScores:
    """Scores of one language, from embeddings [n, D] of its sources and translations and the teacher's of the sources.

    The squared error is between the given embeddings, the teacher's of the source and the model's of the translation.
    The published figures are for embeddings that are not normalised.
    """
    unit_sources, unit_translations = unit_length(sources), unit_length(translations)
    return TranslationScores(
        found(unit_sources, unit_translations, bitext.translations),
        found(unit_translations, unit_sources, bitext.sources),
        None if targets is None else squared_errors(targets, translations),
    )


def evaluate_translations(
    encode: EncodeFunction, parallel: ParallelTexts, teacher: EncodeFunction | None = None
) -> dict[str, TranslationScores]:
    """Scores of each language of one file, whose sources are embedded once (see compare)."""
    sources = embeddings_of(encode, parallel.sources)  # [rows, D]
    targets = embeddings_of(teacher, parallel.sources) if teacher else None
    scores = {}
    for language, texts in parallel.translations.items():
        rows = [row for row, text in enumerate(texts) if text]
        bitext = Bitext([parallel.sources[row] for row in rows], [texts[row] for row in rows])
        translations = embeddings_of(encode, bitext.translations)
        scores[language] = compare(bitext, sources[rows], translations, None if targets is None else targets[rows])
    return scores


def read_task(path: str) -> Task:
    """--parallel: the task of one file; the mean squared error is scored too if the embedder has a teacher."""
    name, parallel = file_title(path), read_parallel(path)
    texts = parallel.sources + [text for column in parallel.translations.values() for text in column if text]
    return Task(name, texts, functools.partial(_score_parallel, name=name, parallel=parallel))


def read_suite_task(data_dir: str, name: str, languages: Sequence[str] = ()) -> Task:
    """The task ntrex or tatoeba (see evaluation.tasks.bitext.read_bitexts); with a teacher the error is scored too.

    The means over the languages come first; each language counts once, however many rows it has. They are called `name`
    if the set is the published one, with every language and row, else for example `name`_mean_of_3.
    """
    bitexts = read_bitexts(data_dir, name, languages)
    texts = list(dict.fromkeys(text for bitext in bitexts.values() for texts in bitext for text in texts))
    return Task(name, texts, functools.partial(_score_suite, name=name, bitexts=bitexts))


def _score_parallel(embedder: "Embedder", name: str, parallel: ParallelTexts) -> Scores:
    return _by_language(name, "heldout", evaluate_translations(embedder, parallel, embedder.teacher))


def _score_suite(embedder: "Embedder", name: str, bitexts: dict[str, Bitext]) -> Scores:
    scores = {}
    for language, bitext in bitexts.items():
        sources, translations = (embeddings_of(embedder, texts) for texts in bitext)
        targets = embeddings_of(embedder.teacher, bitext.sources) if embedder.teacher else None
        scores[language] = compare(bitext, sources, translations, targets)
    results, items = _by_language(name, "test", scores)
    size = (len(bitexts), len(items["part"]))
    title = name if size == COMPLETE[name] else f"{name}_mean_of_{len(bitexts)}"
    means = [
        Result(title, "test", metric, float(np.mean([one.value for one in results if one.metric == metric])), size[0])
        for metric in items if metric != "part"
    ]
    return Scores(means + results, items)


def _by_language(name: str, split: str, scores: dict[str, TranslationScores]) -> Scores:
    """The results of each language, and their rows."""
    columns = {language: of_one.by_metric() for language, of_one in scores.items()}
    results = [
        Result(f"{name}:{language}", split, metric, 100 * float(values.mean()), len(values))
        for language, by_metric in columns.items() for metric, values in by_metric.items()
    ]
    items = {"part": [language for language, of_one in scores.items() for _ in of_one.from_source]}
    for metric in next(iter(columns.values())):
        items[metric] = np.concatenate([by_metric[metric] for by_metric in columns.values()]).tolist()
    return Scores(results, items)
