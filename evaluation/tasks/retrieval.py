"""Retrieval as BEIR has it (Thakur et al. 2021): do the queries find the documents that were judged relevant for them?

A BEIR folder holds corpus.jsonl ({"_id", "title", "text"} a line), queries.jsonl ({"_id", "text"}), either of them
perhaps gzipped, and qrels/SPLIT.tsv (header: query-id, corpus-id, score). The corpus is read once to check it, once to
embed it, window by window, and once for the ids of what was found. It is never held: only the queries and judgements of
the split are.

Legend: Q = queries, d = embedding width.
"""

import array
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from evaluation.files.lines import check_text, json_objects, numbered_lines
from evaluation.measures.retrieval import DEPTH, METRICS, ranking_metrics
from evaluation.task import Result, Scores, Task
from inference.embedding import embeddings_of, unit_embeddings

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

GAIN = re.compile(r"[+-]?[0-9]{1,9}")
QRELS_HEADER = ("query-id", "corpus-id", "score")


class Judgement(NamedTuple):
    gain: int
    place: str  # file:line


Qrels = dict[str, dict[str, Judgement]]  # query id -> document id -> its judgement


class RetrievalData(NamedTuple):
    corpus: pathlib.Path
    num_documents: int
    queries: dict[str, str]  # id -> text, of the queries that are judged
    gains: dict[str, dict[str, int]]  # query id -> document id -> gain


def read_qrels(path: pathlib.Path) -> Qrels:
    """Reads the judgements of one split, by query in the file's order.

    Raises ValueError naming file:line for another header, a wrong number of columns, an empty id, a score that is no
    integer, and a document judged again with another score; and naming the file if it judges nothing.
    """
    lines = numbered_lines(path)
    place, header = next(lines, (f"{path}:1", ""))
    if tuple(header.split("\t")) != QRELS_HEADER:
        raise ValueError(f"{place}: the header must be {', '.join(QRELS_HEADER)}, separated by tabs; it is {header!r}")
    qrels: Qrels = {}
    repeated = 0
    for place, line in lines:
        cells = line.split("\t")
        if len(cells) != len(QRELS_HEADER):
            raise ValueError(f"{place}: {len(cells)} tab-separated columns, but the header has {len(QRELS_HEADER)}")
        query, document, score = cells
        if not query or not document:
            raise ValueError(f"{place}: an id is empty: {line!r}")
        if not GAIN.fullmatch(score.strip()):
            raise ValueError(f"{place}: the score is not an integer of at most nine digits: {score[:80]!r}")
        judgement = Judgement(int(score), place)
        first = qrels.setdefault(query, {}).setdefault(document, judgement)
        if first.gain != judgement.gain:
            raise ValueError(f"{place}: query {query!r} and document {document!r} get {score}, but {first.gain} at "
                             f"{first.place}")
        repeated += first is not judgement
    if not qrels:
        raise ValueError(f"{path} judges no document")
    if repeated:
        logging.info("%s: %d lines repeat a judgement and are left out", path, repeated)
    return qrels


def _records(path: pathlib.Path, texts: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:line", object) of each line; ValueError if it is no JSON object with "_id" and texts as strings.

    A title may be absent.
    """
    for place, record in json_objects(path):
        check_text(record.get("_id"), f'{place}: "_id"')
        for name in texts:
            check_text(record.get(name, "" if name == "title" else None), f'{place}: "{name}"', may_be_empty=True)
        yield place, record


def read_documents(path: pathlib.Path) -> Iterator[tuple[str, str, str]]:
    """("file:line", id, title + " " + text, stripped) of each document; a document may be the empty text."""
    for place, record in _records(path, ("title", "text")):
        yield place, record["_id"], f"{record.get('title', '')} {record['text']}".strip()


def read_queries(path: pathlib.Path, qrels: Qrels) -> dict[str, str]:
    """{id: text} of the queries in qrels, in the file's order.

    Raises ValueError naming file:line for a duplicate id, for an empty text among these, and for a judgement of a query
    that is not there.
    """
    texts, places = {}, {}
    for place, record in _records(path, ("text",)):
        query = record["_id"]
        if query in places:
            raise ValueError(f'{place}: the "_id" {query!r} is also that of {places[query]}')
        places[query] = place
        if query in qrels:
            texts[query] = record["text"].strip()
            if not texts[query]:
                raise ValueError(f"{place}: the text of query {query!r} is empty")
    for query, judgements in qrels.items():
        if query not in texts:
            raise ValueError(f"{next(iter(judgements.values())).place}: {path} has no query {query!r}")
    if len(places) > len(texts):
        logging.info("%s: %d of %d queries are not judged and left out", path, len(places) - len(texts), len(places))
    return texts


def check_documents(path: pathlib.Path, qrels: Qrels) -> int:
    """Number of documents of the corpus, after one pass over it that holds the judged ids and 8 bytes a document.

    Raises ValueError naming file:line for a duplicate id and for a judgement of a document that is not there.
    """
    missing = {document for judgements in qrels.values() for document in judgements}
    hashes, empty = array.array("q"), 0
    for _, document, text in read_documents(path):
        hashes.append(hash(document))
        missing.discard(document)
        empty += not text
    _check_distinct(path, hashes)
    for judgements in qrels.values():
        for document, judgement in judgements.items():
            if document in missing:
                raise ValueError(f"{judgement.place}: {path} has no document {document!r}"
                                 + (f", nor {len(missing) - 1} others that are judged" if len(missing) > 1 else ""))
    if empty:
        logging.info("%s: %d of %d documents have neither title nor text: embedded as the empty text",
                     path, empty, len(hashes))
    return len(hashes)


def _check_distinct(path: pathlib.Path, hashes: array.array) -> None:
    """ValueError naming both lines if two documents have one id; reads the corpus again only if two hashes agree."""
    values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    places = {}
    for place, document, _ in read_documents(path):
        if hash(document) in suspects and places.setdefault(document, place) != place:
            raise ValueError(f'{place}: the "_id" {document!r} is also that of {places[document]}')


def _jsonl(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if path.is_file():
            return path
    raise ValueError(f"--retrieval={folder} has neither {name}.jsonl nor {name}.jsonl.gz")


def read_data(folder: str, split: str) -> RetrievalData:
    """Reads and checks a split of a BEIR folder; ValueError naming the file, and mostly the line, of what is bad."""
    root = pathlib.Path(folder)
    corpus, queries, path = _jsonl(root, "corpus"), _jsonl(root, "queries"), root / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "no splits"
        raise ValueError(f"--retrieval={folder} has no {path}; qrels has {splits}")
    qrels = read_qrels(path)
    texts = read_queries(queries, qrels)
    gains = {query: {document: judgement.gain for document, judgement in qrels[query].items()} for query in texts}
    unanswered = sum(max(of_query.values()) <= 0 for of_query in gains.values())
    if unanswered:
        logging.info("%s: %d of %d queries have no relevant document: they count as 0", path, unanswered, len(gains))
    return RetrievalData(corpus, check_documents(corpus, qrels), texts, gains)


def read_task(folder: str, split: str) -> Task:
    """--retrieval: the task of one BEIR folder, named like it. Its texts get the model's prompts and are not known yet,
    and its corpus is embedded window by window when it is scored."""
    name = pathlib.Path(folder).resolve().name
    return Task(name, (), functools.partial(_score, name=name, split=split, data=read_data(folder, split)))


def retrieve(embedder: "Embedder", data: RetrievalData, depth: int = DEPTH) -> dict[str, dict[str, float]]:
    """Cosines of the `depth` nearest documents of each query: query id -> document id -> cosine.

    As BEIR does, a document with the id of the query is left out: where questions are the corpus, it is the query. The
    model's prompts are put before queries and documents.
    """
    import jax

    from inference.search import exact_search, window_rows

    queries = unit_embeddings(embedder, [embedder.prompts.query + text for text in data.queries.values()])  # [Q, d]
    rows = window_rows(data.num_documents, jax.process_count())
    scores, documents = exact_search(queries, depth + 1, _embedded_windows(embedder, data, rows), rows)
    wanted = set(documents.ravel().tolist()) - {-1}
    ids = {number: document for number, (_, document, _) in enumerate(read_documents(data.corpus)) if number in wanted}
    found, identical = {}, 0
    for query, cosines, numbers in zip(data.queries, scores.tolist(), documents.tolist()):
        hits = {ids[number]: cosine for number, cosine in zip(numbers, cosines) if number >= 0}
        identical += hits.pop(query, None) is not None
        found[query] = dict(itertools.islice(hits.items(), depth))
    if identical:
        logging.info("%s: %d of %d queries found a document with their own id, which is left out, as BEIR does",
                     data.corpus.parent, identical, len(found))
    return found


def _embedded_windows(embedder: "Embedder", data: RetrievalData, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first document, embeddings [<= rows, d] of unit length) of this process's windows."""
    import jax

    encode = functools.partial(embedder.encoder.encode, normalize=True)
    texts = (embedder.prompts.document + text for _, _, text in read_documents(data.corpus))
    with tqdm(total=data.num_documents, desc=f"search {data.corpus.parent.name}", unit="text",
              disable=jax.process_index() > 0) as bar:
        for number, first in enumerate(range(0, data.num_documents, rows)):
            window = list(itertools.islice(texts, rows))
            if number % jax.process_count() == jax.process_index():
                yield first, embeddings_of(encode, window)
            bar.update(len(window))


def _score(embedder: "Embedder", name: str, split: str, data: RetrievalData) -> Scores:
    found = retrieve(embedder, data)
    by_query = [ranking_metrics(found[query], data.gains[query]) for query in data.queries]
    columns = {metric: [metrics[metric] for metrics in by_query] for metric in METRICS}
    results = [Result(name, split, metric, 100 * float(np.mean(values)), len(values))
               for metric, values in columns.items()]
    return Scores(results, {"query": list(data.queries.values())} | columns)
