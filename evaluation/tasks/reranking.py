"""Reranking: are a query's positive candidates nearer to it than its negative ones (cosine)?

AskUbuntu (Lei et al., 2016): only titles are compared. The candidates were found by BM25, and annotators judged which
are similar. SciDocs (Cohan et al., 2020): the mean of four MAPs. Both follow the protocol of SCT's published tables.
Other files, such as StackOverflow duplicates, follow that of sentence-transformers' RerankingEvaluator.

Legend: Q = queries, M = candidates of all queries together, D = embedding width.
"""

import functools
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.files.lines import check_text, file_title, json_objects, log_left_out, numbered_lines
from evaluation.measures.reranking import average_precisions, reciprocal_ranks
from evaluation.task import MissingData, Result, Scores, Task
from inference.embedding import EncodeFunction, unit_embeddings

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

TASKS = ("askubuntu", "scidocs")
SCIDOCS_PARTS = ("cite", "cocite", "coview", "coread")
CANDIDATE_BLOCK = 8192  # candidates whose embeddings are gathered at once


class Query(NamedTuple):
    text: str
    positives: list[str]
    negatives: list[str]


class RerankingScores(NamedTuple):
    average_precisions: np.ndarray  # [Q] float64, in [0, 1]
    reciprocal_ranks: np.ndarray  # [Q] float64, 0 if no positive is among the first ten


def read_task(data_dir: str, name: str, split: str) -> Task:
    """askubuntu, from its original files in DIR/askubuntu or DIR; or scidocs, from JSON lines in DIR/scidocs.

    SciDocs' parts are NAME/SPLIT.jsonl[.gz], or NAME.jsonl[.gz] for test. Raises MissingData if a file is missing.
    """
    if name == "scidocs":
        folder = pathlib.Path(data_dir, "scidocs")
        return _task(name, split, {part: read_queries(_scidocs_file(folder, part, split)) for part in SCIDOCS_PARTS})
    folder = pathlib.Path(data_dir, "askubuntu")
    return _task(name, split, {name: read_askubuntu(folder if folder.is_dir() else folder.parent, split)})


def read_file_task(path: str) -> Task:
    """--reranking: the task of one file, with the file's name."""
    name = file_title(path)
    return _task(name, "heldout", {name: read_queries(path)})


def _scidocs_file(folder: pathlib.Path, part: str, split: str) -> pathlib.Path:
    names = [f"{part}/{split}.jsonl", f"{part}/{split}.jsonl.gz"]
    names += [f"{part}.jsonl", f"{part}.jsonl.gz"] if split == "test" else []
    return _existing(folder, names, f"--suite=scidocs needs the split {split!r} of all of {', '.join(SCIDOCS_PARTS)}")


def _existing(folder: pathlib.Path, names: list[str], need: str) -> pathlib.Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingData(f"{need}: {folder} has no {' and no '.join(names)}")


def read_queries(path: str | pathlib.Path) -> list[Query]:
    """Reads one {"query": text, "positive": [texts], "negative": [texts]} per line, from .jsonl or .jsonl.gz.

    Other keys are ignored. Queries without positives or without negatives are left out, as in sentence-transformers'
    RerankingEvaluator, and their number is logged. Raises ValueError naming file:line for a line that is not of this
    form and for an empty text.
    """
    queries = [_query(value, place) for place, value in json_objects(path)]
    kept = [query for query in queries if query.positives and query.negatives]
    if not kept:
        raise ValueError(f"{path} has no query with a positive and a negative; it has {len(queries)} lines")
    log_left_out(path, len(queries) - len(kept), "without positives or without negatives")
    return kept


def _query(value: dict, place: str) -> Query:
    missing = [name for name in ("query", "positive", "negative") if name not in value]
    if missing:
        raise ValueError(f"{place}: the object lacks {', '.join(missing)}; it has {', '.join(value) or 'nothing'}")
    for name in ("positive", "negative"):
        if not isinstance(value[name], list):
            raise ValueError(f'{place}: "{name}" is not a list of texts: {str(value[name])[:80]!r}')
    for name, texts in (("query", [value["query"]]), ("positive", value["positive"]), ("negative", value["negative"])):
        for text in texts:
            check_text(text, f'{place}: a text of "{name}"')
    return Query(value["query"], value["positive"], value["negative"])


def read_askubuntu(folder: pathlib.Path, split: str) -> list[Query]:
    """Reads SPLIT.txt (query id, similar ids, candidate ids, their BM25 scores; tab-separated, lists by spaces) and the
    titles of its questions from text_tokenized.txt[.gz] (id, title, body).

    Queries without a similar candidate are left out, as in the published figures, and their number is logged. Raises
    ValueError naming file:line for a wrong number of columns or scores, a repeated id, an id without a text, and an
    empty title.
    """
    path = _existing(folder, [f"{split}.txt"], f"--suite=askubuntu needs the split {split!r}")
    text_path = _existing(folder, ["text_tokenized.txt.gz", "text_tokenized.txt"], "--suite=askubuntu needs the texts")
    lines: dict[str, tuple[list[str], list[str]]] = {}  # query id -> similar ids, candidate ids
    places: dict[str, str] = {}  # id -> the line that first needs its title
    for place, line in numbered_lines(path):
        query, similar, candidates = _parse_ids(line, place)
        if query in lines:
            raise ValueError(f"{place}: the query {query} occurs twice")
        lines[query] = similar, candidates
        for number in (query, *candidates):
            places.setdefault(number, place)
    titles = _read_titles(text_path, places)
    queries, lost = [], 0
    for query, (similar, candidates) in lines.items():
        positives = [titles[number] for number in candidates if number in similar]
        lost += len(similar) - len(positives)
        if positives:
            queries.append(Query(titles[query], positives, [titles[i] for i in candidates if i not in similar]))
    log_left_out(path, lost, "similar questions that are not candidates")
    log_left_out(path, len(lines) - len(queries), "without a similar candidate")
    if not queries:
        raise ValueError(f"{path} has no query with a similar candidate; it has {len(lines)} lines")
    return queries


def _parse_ids(line: str, place: str) -> tuple[str, list[str], list[str]]:
    fields = line.split("\t")
    if len(fields) != 4:
        raise ValueError(f"{place}: {len(fields)} tab-separated columns; expected query, similar, candidates, scores")
    similar, candidates, scores = (field.split() for field in fields[1:])
    if len(scores) != len(candidates):
        raise ValueError(f"{place}: {len(scores)} BM25 scores of {len(candidates)} candidates")
    for name, numbers in (("similar", similar), ("candidate", candidates)):
        if len(set(numbers)) < len(numbers):
            repeated = next(number for number in numbers if numbers.count(number) > 1)
            raise ValueError(f"{place}: the {name} question {repeated} occurs twice")
    return fields[0].strip(), similar, candidates


def _read_titles(path: pathlib.Path, places: dict[str, str]) -> dict[str, str]:
    """{id: title} of the ids in `places`, which names the line that needs each."""
    titles: dict[str, str] = {}
    for place, line in numbered_lines(path):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{place}: {len(fields)} tab-separated columns; expected id, title, body")
        number = fields[0].strip()
        if number not in places:
            continue
        if number in titles:
            raise ValueError(f"{place}: the question {number} occurs twice")
        if not fields[1].strip():
            raise ValueError(f"{place}: the title of question {number} is empty; {places[number]} needs it")
        titles[number] = fields[1].strip()
    for number, place in places.items():
        if number not in titles:
            raise ValueError(f"{place}: question {number} is not in {path}")
    return titles


def evaluate_reranking(encode: EncodeFunction, queries: list[Query]) -> RerankingScores:
    """Average precision and reciprocal rank of each query; each distinct text is given to `encode` once."""
    row_of: dict[str, int] = {}
    for query in queries:
        for text in (query.text, *query.positives, *query.negatives):
            row_of.setdefault(text, len(row_of))
    embeddings = unit_embeddings(encode, list(row_of))
    query_rows = np.array([row_of[query.text] for query in queries])
    candidates = np.array([row_of[text] for query in queries for text in (*query.positives, *query.negatives)])
    counts = np.array([[len(query.positives), len(query.negatives)] for query in queries])
    numbers = np.repeat(np.arange(len(queries)), counts.sum(1))  # [M]: the query of each candidate
    relevant = np.repeat(np.tile([True, False], len(queries)), counts.reshape(-1))  # [M]
    cosines = np.empty(len(candidates))
    for start in range(0, len(candidates), CANDIDATE_BLOCK):
        block = slice(start, start + CANDIDATE_BLOCK)
        cosines[block] = np.einsum(
            "md,md->m", embeddings[query_rows[numbers[block]]], embeddings[candidates[block]], dtype=np.float64)
    return RerankingScores(
        average_precisions(numbers, relevant, cosines), reciprocal_ranks(numbers, relevant, cosines))


def _task(name: str, split: str, parts: dict[str, list[Query]]) -> Task:
    texts = [text for queries in parts.values() for query in queries
             for text in (query.text, *query.positives, *query.negatives)]
    return Task(name, texts, functools.partial(_score, name=name, split=split, parts=parts))


def _score(embedder: "Embedder", name: str, split: str, parts: dict[str, list[Query]]) -> Scores:
    """The scores of each part; if there are several, the mean of their MAPs comes first."""
    results, items = [], {"map": [], "mrr@10": [], "query": [], "part": []}
    for part, queries in parts.items():
        scores = evaluate_reranking(embedder, queries)
        task = name if part == name else f"{name}:{part}"
        values = {"map": scores.average_precisions, "mrr@10": scores.reciprocal_ranks}
        for metric, by_query in values.items():
            results.append(Result(task, split, metric, 100 * float(by_query.mean()), len(queries)))
            items[metric] += by_query.tolist()
        items["query"] += [query.text for query in queries]
        items["part"] += [part] * len(queries)
    if len(parts) > 1:
        maps = [result.value for result in results if result.metric == "map"]
        results.insert(0, Result(name, split, "map", float(np.mean(maps)), len(maps)))
    return Scores(results, items)
