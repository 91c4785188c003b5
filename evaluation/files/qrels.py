"""Relevance judgements (qrels) of a retrieval set: BEIR's table, that table without header, and TREC's four columns."""

import itertools
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from evaluation.files.lines import Line, log_left_out, numbered_lines

GAIN = re.compile(r"([+-]?[0-9]{1,9})(\.0*)?")
BEIR = ("queryid", "corpusid", "score")
TREC = ("queryid", "iteration", "corpusid", "score")
SYNONYMS = {  # names in headers, without case, spaces, - and _
    "queryid": ("queryid", "query", "qid", "topicid", "topic"),
    "corpusid": ("corpusid", "docid", "docno", "documentid", "document", "doc", "passageid", "pid", "did"),
    "score": ("score", "relevance", "rel", "label", "gain", "grade", "judgement", "judgment"),
}

Qrels = dict[str, dict[str, int]]  # query id -> document id -> gain


class Columns(NamedTuple):
    """The positions of the cells of a judgement in its line."""

    query: int
    document: int
    score: int
    count: int  # columns of the file


def read_qrels(path: pathlib.Path) -> Qrels:
    """Reads the judgements of one split, by query in the file's order.

    A line is query id, document id and score, or TREC's query id, iteration, document id and score, separated by tabs
    or by spaces. A first line of column names may give another order. Scores are integers (1 or 1.0).

    Raises ValueError naming file:line for a wrong number of columns, an empty id, a score that is no integer and a
    document that is judged again with another score; and naming the file if it judges nothing.
    """
    lines = numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} judges no document")
    columns = _named_columns(first)
    if columns is None:
        columns, lines = _usual_columns(first), itertools.chain([first], lines)
    return _read(path, lines, columns)


def _read(path: pathlib.Path, lines: Iterable[Line], columns: Columns) -> Qrels:
    qrels: Qrels = {}
    judgements = 0
    for place, line in lines:
        cells = _cells(line)
        if len(cells) != columns.count:
            raise ValueError(f"{place}: {len(cells)} columns, but the first line has {columns.count}: {line[:80]!r}")
        query, document, score = cells[columns.query], cells[columns.document], cells[columns.score]
        if not query or not document:
            raise ValueError(f"{place}: an id is empty: {line[:80]!r}")
        if not (match := GAIN.fullmatch(score)):
            raise ValueError(f"{place}: the score is not an integer of at most nine digits: {score[:80]!r}")
        gain, of_query = int(match[1]), qrels.setdefault(query, {})
        if of_query.setdefault(document, gain) != gain:
            raise ValueError(f"{place}: query {query!r} and document {document!r} have the score {gain}, but "
                             f"{of_query[document]} in an earlier line")
        judgements += 1
    if not qrels:
        raise ValueError(f"{path} judges no document")
    log_left_out(path, judgements - sum(map(len, qrels.values())), "lines that repeat a judgement")
    return qrels


def _cells(line: str) -> list[str]:
    """Cells are separated by tabs and may hold spaces; a line with too few tabs is split at any white space."""
    by_tab = [cell.strip() for cell in line.split("\t")]
    return by_tab if len(by_tab) >= len(BEIR) else line.split()


def _named_columns(first: Line) -> Columns | None:
    """The columns that a header names; None if the first line is not a header."""
    cells = [re.sub(r"[\s_-]", "", cell).lower() for cell in _cells(first[1])]
    found = {name: [index for index, cell in enumerate(cells) if cell in words] for name, words in SYNONYMS.items()}
    if not found["score"] or GAIN.fullmatch(cells[-1]):
        return None
    for places in found.values():
        if len(places) != 1:
            raise ValueError(f"{first[0]}: a header names query-id, corpus-id and score once each: {first[1][:80]!r}")
    return Columns(*(found[name][0] for name in BEIR), len(cells))  # type: ignore[call-arg]


def _usual_columns(first: Line) -> Columns:
    cells = _cells(first[1])
    if len(cells) not in (len(BEIR), len(TREC)):
        raise ValueError(f"{first[0]}: {len(cells)} columns; expected query-id, corpus-id, score, or TREC's query-id, "
                         f"iteration, corpus-id, score: {first[1][:80]!r}")
    if not GAIN.fullmatch(cells[-1]):
        raise ValueError(f"{first[0]}: neither a judgement (its score {cells[-1][:80]!r} is not an integer) nor a "
                         "header of query-id, corpus-id, score")
    names = BEIR if len(cells) == len(BEIR) else TREC
    return Columns(*(names.index(name) for name in BEIR), len(cells))  # type: ignore[call-arg]
