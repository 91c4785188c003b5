"""Retrieval as in BEIR (Thakur et al. 2021): do the queries find the documents that were judged relevant for them?

A BEIR folder holds corpus.jsonl (one {"_id", "title", "text"} per line), queries.jsonl ({"_id", "text"}) and
qrels/SPLIT.tsv (evaluation/files/qrels.py lists its forms); each may be gzipped. The corpus is read three times: to
check it, to embed it window by window, and to look up the ids of the documents found. Only the queries and judgements
of the split are held in memory, never the corpus.

As in trec_eval, a judged document that the corpus lacks counts as not found.

Legend: Q = queries, D = embedding width.
"""

import array
import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from evaluation.files.lines import check_text, json_objects, log_left_out
from evaluation.files.qrels import Qrels, read_qrels
from evaluation.measures.retrieval import DEPTH, METRICS, ranking_metrics
from evaluation.task import Result, Scores, Task
from inference.embedding import embeddings_of, unit_embeddings

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

QRELS_SUFFIXES = (".tsv", ".tsv.gz", ".txt", ".txt.gz")


class RetrievalData(NamedTuple):
    corpus: pathlib.Path
    num_documents: int
    queries: dict[str, str]  # id -> text, of the queries that are judged
    gains: Qrels  # of those queries


def _records(path: pathlib.Path) -> Iterator[tuple[str, str, dict]]:
    """("file:line", id, object) of each line; ValueError if it has no "_id" that is a string."""
    for place, record in json_objects(path):
        if "_id" not in record:
            raise ValueError(f'{place}: "_id" is missing; the object has {", ".join(record) or "nothing"}')
        check_text(record["_id"], f'{place}: "_id"')
        yield place, record["_id"].strip(), record


def _text(record: dict, name: str, place: str) -> str:
    """A text of a record; null is the empty text."""
    if name not in record:
        raise ValueError(f'{place}: "{name}" is missing; the object has {", ".join(record)}')
    if record[name] is None:
        return ""
    check_text(record[name], f'{place}: "{name}"', may_be_empty=True)
    return record[name]


def read_documents(path: pathlib.Path) -> Iterator[tuple[str, str, str]]:
    """("file:line", id, title + " " + text) of each document; both may be empty or null, the title may be absent."""
    for place, document, record in _records(path):
        title = _text(record, "title", place) if "title" in record else ""
        yield place, document, f"{title} {_text(record, 'text', place)}".strip()


def read_queries(path: pathlib.Path, qrels: Qrels) -> dict[str, str]:
    """{id: text} of the queries that are judged, in the file's order. Logs how many have no judgement or no text.

    Raises ValueError naming file:line for a duplicate id, and naming the file if no judged query has a text.
    """
    texts, places = {}, {}
    for place, query, record in _records(path):
        if query in places:
            raise ValueError(f'{place}: the "_id" {query!r} is also that of {places[query]}')
        places[query] = place
        text = _text(record, "text", place).strip()
        if query in qrels and text:
            texts[query] = text
    if not texts:
        raise ValueError(f"{path} has no text for any of the {len(qrels)} judged queries: {next(iter(qrels))!r} ...")
    log_left_out(path, len(places.keys() - qrels.keys()), f"of {len(places)} queries: not judged")
    log_left_out(path, len(qrels) - len(texts), f"of {len(qrels)} judged queries: they have no text")
    return texts


def check_documents(path: pathlib.Path, gains: Qrels) -> int:
    """Number of documents of the corpus. One pass over it keeps the judged ids and 8 bytes per document in memory.

    Judged documents that the corpus lacks are counted and logged; as in trec_eval, they count as not found. Raises
    ValueError naming file:line for a duplicate id, and naming the file if it has none of the judged documents.
    """
    judged = {document for of_query in gains.values() for document in of_query}
    missing, hashes, empty = set(judged), array.array("q"), 0
    for _, document, text in read_documents(path):
        hashes.append(hash(document))
        missing.discard(document)
        empty += not text
    _check_distinct(path, hashes)
    if missing == judged:
        raise ValueError(f"{path} has none of the {len(judged)} judged documents, such as {min(missing)!r}: do corpus "
                         "and qrels belong together?")
    if missing:
        count = sum(document in missing for of_query in gains.values() for document in of_query)
        logging.warning("%s lacks %d of %d judged documents, such as %r: the documents of their %d judgements count "
                        "as not found", path, len(missing), len(judged), min(missing), count)
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


def _qrels_file(folder: pathlib.Path, split: str) -> pathlib.Path:
    names = [f"{split}{suffix}" for suffix in QRELS_SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(file.name for file in folder.glob("*"))) or "nothing"
    raise ValueError(f"--retrieval={folder.parent}: qrels/ has no {names[0]} for --split={split}; it has {there}")


def read_data(folder: str, split: str) -> RetrievalData:
    """Reads and checks one split of a BEIR folder; ValueError naming the file, and usually the line, of a fault."""
    root = pathlib.Path(folder)
    corpus, queries, path = _jsonl(root, "corpus"), _jsonl(root, "queries"), _qrels_file(root / "qrels", split)
    qrels = read_qrels(path)
    texts = read_queries(queries, qrels)
    gains = {query: qrels[query] for query in texts}
    unanswered = sum(max(of_query.values()) <= 0 for of_query in gains.values())
    if unanswered:
        logging.info("%s: %d of %d queries have no relevant document: they count as 0", path, unanswered, len(gains))
    return RetrievalData(corpus, check_documents(corpus, gains), texts, gains)


def read_task(folder: str, split: str) -> Task:
    """--retrieval: the task of one BEIR folder, which gives it its name.

    Task.texts is empty: the model's prompts are still unknown, and scoring embeds the corpus window by window.
    """
    name = pathlib.Path(folder).resolve().name
    return Task(name, (), functools.partial(_score, name=name, split=split, data=read_data(folder, split)))


def retrieve(embedder: "Embedder", data: RetrievalData, depth: int = DEPTH) -> dict[str, dict[str, float]]:
    """Cosines of the `depth` nearest documents of each query: query id -> document id -> cosine.

    As in BEIR, a document with the id of the query is left out: if the corpus consists of questions, it is the query
    itself. The model's prompts are put before queries and documents.
    """
    import jax

    from inference.search import exact_search, window_rows

    queries = unit_embeddings(  # [Q, D]
        embedder.prompted, [embedder.prompts.query + text for text in data.queries.values()])
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
        logging.info("%s: %d of %d queries found a document with their own id; it is left out, as in BEIR",
                     data.corpus.parent, identical, len(found))
    return found


def _embedded_windows(embedder: "Embedder", data: RetrievalData, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index of its first document, embeddings [<= rows, D] of unit length) of this process's windows."""
    import jax

    encode = functools.partial(embedder.encoder.encode, prompt_name="", normalize=True)
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
