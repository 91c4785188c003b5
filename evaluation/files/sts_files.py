"""Reads sentence pairs with human scores, in the formats in which they are published.

Each reader returns the pairs of one file, or of an input file and its gold scores. It raises a ValueError that names
file:line for a wrong number of columns, an empty sentence, and a score that is no finite number or is outside `limits`.
"""

import csv
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from evaluation.files.lines import (
    aligned_lines,
    all_lines,
    check_text,
    json_objects,
    log_left_out,
    numbered_lines,
    table_rows,
)


class StsPair(NamedTuple):
    sentence1: str
    sentence2: str
    score: float


Limits = tuple[float, float] | None  # least and largest score; None: any finite one


class Columns(NamedTuple):
    """Names in a header, in lower case: of the sentences, the score, and the split and part if the file has them."""

    sentence1: str = "sentence1"
    sentence2: str = "sentence2"
    score: str = "score"
    split: str = "split"
    part: str = ""  # "": the file has no parts


class Row(NamedTuple):
    place: str  # file:line
    part: str
    pair: StsPair


def read_sts(path: str | pathlib.Path, split: str = "") -> list[StsPair]:
    """Reads the pairs of one split of an STS file; an empty `split` reads all.

    The file is .tsv or .tsv.gz, unquoted, with a header that names at least the columns sentence1, sentence2 and score
    (in any case), and split if one is chosen. Raises ValueError naming file:line for a wrong number of columns, a score
    that is no finite number and an empty sentence, in any split.
    """
    return [row.pair for row in read_columns(path, split, Columns())]


def read_columns(path: str | pathlib.Path, split: str, columns: Columns, limits: Limits = None) -> list[Row]:
    """Rows of a tab-separated, unquoted file with a header; an empty `split` reads all. Checks all splits."""
    rows, splits = [], set()
    for place, row in table_rows(path, columns[:3] + ((columns.split,) if split else ())):
        pair = _pair(row[columns.sentence1], row[columns.sentence2], row[columns.score], place, limits)
        splits.add(row.get(columns.split, ""))
        if not split or row[columns.split] == split:
            rows.append(Row(place, row.get(columns.part, ""), pair))
    _check_split(path, split, rows, splits)
    return rows


def read_json_lines(
    path: str | pathlib.Path, split: str, limits: Limits = None, *, language: str = "", file_split: str = "test"
) -> list[Row]:
    """Rows of a file with one {"sentence1", "sentence2", "score", "lang"[, "split"]} object per line.

    The part of a row is its language. `language` and `file_split` are those of lines that name none.
    """
    rows, splits = [], set()
    for place, row in json_objects(path):
        missing = [name for name in ("sentence1", "sentence2", "score") if name not in row]
        if missing:
            raise ValueError(f"{place}: the object lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
        pair = _pair(row["sentence1"], row["sentence2"], row["score"], place, limits)
        part = row.get("lang", language)
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f"{place}: no language: lang is {part!r}")
        splits.add(str(row.get("split", file_split)))
        if row.get("split", file_split) == split:
            rows.append(Row(place, part, pair))
    _check_split(path, split, rows, splits)
    return rows


def read_input_and_gold(
    input_path: pathlib.Path, gold_path: pathlib.Path, limits: Limits = None, num_columns: tuple[int, ...] = (2,)
) -> list[StsPair]:
    """SemEval's two files of a part: two tab-separated sentences per line, and the score of that line.

    Pairs whose gold line is blank were not judged: they are left out, and their number is logged. `num_columns`
    are the numbers of columns that the input may have. ValueError if one file ends before the other.
    """
    lines = list(aligned_lines(input_path, gold_path))
    judged = [(*line, *gold) for line, gold in lines if gold[1].strip()]
    if not judged:
        raise ValueError(f"{gold_path} has no scores for the {len(lines)} pairs of {input_path}")
    log_left_out(input_path, len(lines) - len(judged), f"of {len(lines)} pairs: not judged")
    pairs = []
    for place, line, gold_place, gold in judged:
        fields = _checked_fields(line.split("\t"), place, num_columns)
        pairs.append(StsPair(*_sentences(fields[0], fields[1], place), _score(gold, gold_place, limits)))
    return pairs


def read_positions(
    path: pathlib.Path, positions: tuple[int, int, int], num_columns: tuple[int, ...], limits: Limits = None,
    *, comma_separated: bool = False,
) -> list[StsPair]:
    """Pairs of a file without a header: `positions` are the columns of sentence1, sentence2 and score, from 0.

    Tab-separated files are unquoted; comma-separated ones are quoted as in RFC 4180.
    """
    rows = _comma_separated(path) if comma_separated else (
        (place, line.split("\t")) for place, line in numbered_lines(path))
    pairs = []
    for place, fields in rows:
        _checked_fields(fields, place, num_columns)
        pairs.append(_pair(*(fields[position] for position in positions), place, limits))  # type: ignore[call-arg]
    if not pairs:
        raise ValueError(f"{path} has no lines")
    return pairs


def _comma_separated(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """(file:line, fields) of each record; the line is the record's last, because a quoted field may hold line ends."""
    reader = csv.reader((line + "\n" for _, line in all_lines(path)), strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield f"{path}:{reader.line_num}", fields
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not comma-separated: {error}") from error


def _checked_fields(fields: list[str], place: str, num_columns: tuple[int, ...]) -> list[str]:
    if len(fields) not in num_columns:
        raise ValueError(f"{place}: {len(fields)} columns; expected {' or '.join(map(str, num_columns))}")
    return fields


def _check_split(path: str | pathlib.Path, split: str, rows: list[Row], splits: Iterable[str]) -> None:
    if not rows:
        of_split = f" of the split {split!r}; it has {', '.join(sorted(splits)) or 'no rows'}" if split else "s"
        raise ValueError(f"{path} has no row{of_split}")


def _pair(sentence1: str, sentence2: str, score: str | float, place: str, limits: Limits) -> StsPair:
    return StsPair(*_sentences(sentence1, sentence2, place), _score(score, place, limits))


def _sentences(sentence1: str, sentence2: str, place: str) -> tuple[str, str]:
    for name, sentence in (("sentence1", sentence1), ("sentence2", sentence2)):
        check_text(sentence, f"{place}: {name}")
    return sentence1, sentence2


def _score(text: str | float, place: str, limits: Limits) -> float:
    try:
        score = float(text)
    except (TypeError, ValueError, OverflowError):  # the last: JSON's integers have no largest one
        score = math.nan
    if isinstance(text, bool) or not math.isfinite(score):
        raise ValueError(f"{place}: score is not a finite number: {repr(text)[:80]}")
    if limits and not limits[0] <= score <= limits[1]:
        raise ValueError(f"{place}: score {text} is outside {limits[0]:g} to {limits[1]:g}")
    return score
