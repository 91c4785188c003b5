"""Retrieval figures of the real all-MiniLM-L6-v2, to two decimals.

A corpus may lack judged documents, and qrels may lack a header, as in what is published.
"""

import json

import jax
import pytest

from evaluation.embedder import Embedder
from evaluation.measures.retrieval import METRICS
from evaluation.tasks.retrieval import read_task
from inference.encoder import Encoder

DOCUMENTS = ("a man plays guitar", "a cat sits on a mat", "stocks fell on monday", "paris is the capital of france")
QUERIES = {"q1": "music instrument player", "q2": "capital city of france"}
QRELS = "q1\td0\t1\nq2\td3\t1\nq1\tgone\t1\n"  # the corpus has no "gone"


@pytest.fixture(scope="module")
def embedder(minilm):
    return Embedder(Encoder.load(minilm, devices=jax.devices()[:1]))


def scores(embedder, folder) -> dict[str, float]:
    results, _ = read_task(str(folder), "test").score(embedder)
    return {result.metric: round(result.value, 2) for result in results}


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", ""])
def test_a_judged_document_that_the_corpus_lacks(embedder, tmp_path, header):
    for name, records in (
        ("corpus", [{"_id": f"d{number}", "title": f"title {number}", "text": text}
                    for number, text in enumerate(DOCUMENTS)]),
        ("queries", [{"_id": query, "text": text} for query, text in QUERIES.items()]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(header + QRELS)
    assert scores(embedder, tmp_path) == dict(zip(METRICS, (80.66, 100.00, 75.00, 75.00)))


def test_msmarco_of_5000_passages(embedder, shared_data):
    folder = shared_data / "eval" / "beir" / "msmarco_small"
    if not folder.is_dir():
        pytest.skip(f"no retrieval data at {folder}")
    assert scores(embedder, folder) == dict(zip(METRICS, (79.77, 100.00, 80.32, 79.34)))
