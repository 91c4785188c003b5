import gzip
import json
import logging

import jax
import numpy as np
import pytest

from data.examples import Prompts
from evaluation.embedder import Embedder
from evaluation.measures.retrieval import METRICS, ranking_metrics
from evaluation.tasks import retrieval
from evaluation.tasks.retrieval import read_data, read_task, retrieve
from inference import search

DOCUMENTS = (("d0", "Angle", "0"), ("d10", "", "10"), ("d20", "Angle", "20"), ("d170", "", " 170 "))
QUERIES = (("q1", "at 1"), ("q2", "at 12"))
JUDGED = (("q1", "d0", 2), ("q1", "d10", 1), ("q2", "d20", 1))


def write(path, lines):
    text = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_folder(folder, documents=DOCUMENTS, queries=QUERIES, judged=JUDGED, split="test", suffix=""):
    write(folder / f"corpus.jsonl{suffix}",
          [json.dumps({"_id": name, "title": title, "text": text}) for name, title, text in documents])
    write(folder / f"queries.jsonl{suffix}", [json.dumps({"_id": name, "text": text}) for name, text in queries])
    write(folder / "qrels" / f"{split}.tsv",
          ["query-id\tcorpus-id\tscore", *("\t".join(map(str, judgement)) for judgement in judged)])
    return str(folder)


@pytest.fixture
def embedder(angle_encoder):
    return Embedder(angle_encoder(2.0))


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged at INFO: absl's logger shows no more than warnings unless a program says so."""
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    caplog.set_level(logging.INFO, logger="absl")
    return caplog


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_data(tmp_path, suffix, logged):
    data = read_data(write_folder(tmp_path, queries=(*QUERIES, ("q3", "")), suffix=suffix), "test")
    assert (data.num_documents, data.queries) == (4, dict(QUERIES))
    assert data.gains == {"q1": {"d0": 2, "d10": 1}, "q2": {"d20": 1}}
    assert [text for _, _, text in retrieval.read_documents(data.corpus)] == ["Angle 0", "10", "Angle 20", "170"]
    assert "queries.jsonl" + suffix + ": left out 1 of 3 queries: not judged" in logged.text


def test_the_scores_of_a_task(tmp_path, embedder):
    """q1 finds d0, d10; q2, at 12 degrees, d10, d20, d0."""
    task = read_task(write_folder(tmp_path / "angles", split="dev") + "/", "dev")
    assert (task.name, list(task.texts), embedder.encoder.encoded) == ("angles", [], [])
    results, items = task.score(embedder)
    expected = {"ndcg@10": (1 + 1 / np.log2(3)) / 2, "mrr@10": 3 / 4, "recall@100": 1, "map@100": 3 / 4}
    assert [(result.task, result.split, result.metric, result.n) for result in results] == [
        ("angles", "dev", metric, 2) for metric in METRICS]
    assert {result.metric: result.value for result in results} == {
        metric: pytest.approx(100 * value) for metric, value in expected.items()}
    assert items == {"query": ["at 1", "at 12"], "ndcg@10": [1, pytest.approx(1 / np.log2(3))], "mrr@10": [1, 1 / 2],
                     "recall@100": [1, 1], "map@100": [1, 1 / 2]}


def test_prompts_come_before_queries_and_documents(tmp_path, embedder):
    embedder.prompts = Prompts("query: ", "passage: ")
    retrieve(embedder, read_data(write_folder(tmp_path), "test"))
    assert embedder.encoder.encoded == [
        "query: at 1", "query: at 12", "passage: Angle 0", "passage: 10", "passage: Angle 20", "passage: 170"]


def test_a_document_with_the_id_of_the_query_is_left_out(tmp_path, embedder, logged):
    """One more is searched, so that `depth` documents remain."""
    documents = [(f"{angle}", "", f"{angle}") for angle in range(8)]
    data = read_data(write_folder(tmp_path, documents, [("3", "3"), ("other", "3")],
                                  [("3", "3", 1), ("3", "0", 1), ("other", "3", 1)]), "test")
    found = retrieve(embedder, data, depth=3)
    assert {query: list(documents) for query, documents in found.items()} == {
        "3": ["2", "4", "1"], "other": ["3", "2", "4"]}
    assert found["other"]["3"] == pytest.approx(1) and found["3"]["1"] == pytest.approx(np.cos(np.radians(2)))
    assert "1 of 2 queries found a document with their own id; it is left out" in logged.text


@pytest.mark.parametrize("window", [3, 70, 1000])
def test_windows_give_what_one_ranking_of_all_documents_gives(tmp_path, embedder, monkeypatch, window):
    monkeypatch.setattr(search, "LARGEST_WINDOW", window)
    monkeypatch.setattr(search, "WINDOW_STEP", 1)
    generator = np.random.default_rng(0)
    angles = generator.permutation(1790)[:211] / 10
    documents = [(f"d{number}", "", str(angle)) for number, angle in enumerate(angles)]
    queries = [(f"q{number}", str(angle + 0.03)) for number, angle in enumerate(generator.choice(angles, 20))]
    judged = {query: {f"d{number}": int(generator.integers(0, 4)) for number in generator.permutation(211)[:30]}
              for query, _ in queries}
    rows = [(query, document, gain) for query, gains in judged.items() for document, gain in gains.items()]
    results, items = read_task(write_folder(tmp_path, documents, queries, rows), "test").score(embedder)
    for row, (query, angle) in enumerate(queries):
        found = {f"d{number}": -abs(other - float(angle)) for number, other in enumerate(angles)}
        expected = ranking_metrics(found, judged[query])
        assert {metric: items[metric][row] for metric in METRICS} == pytest.approx(expected), query
    assert [result.value for result in results] == [pytest.approx(100 * np.mean(items[metric])) for metric in METRICS]


def test_processes_embed_windows_of_their_own(tmp_path, embedder, monkeypatch):
    data = read_data(write_folder(tmp_path, [(f"d{angle}", "", str(angle)) for angle in range(50)], QUERIES,
                                  [("q1", "d0", 1), ("q2", "d1", 1)]), "test")
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    windows = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        windows.append(dict(retrieval._embedded_windows(embedder, data, rows=8)))
    assert [list(of_process) for of_process in windows] == [[0, 24, 48], [8, 32], [16, 40]]
    assert embedder.encoder.encoded == [str(angle) for first in (0, 24, 48, 8, 32, 16, 40)
                                        for angle in range(first, min(first + 8, 50))]
    np.testing.assert_allclose(windows[1][32][3], [np.cos(np.radians(35)), np.sin(np.radians(35))])


def test_what_is_left_out_or_counts_as_0_is_logged(tmp_path, logged):
    folder = write_folder(tmp_path, (*DOCUMENTS, ("e1", "", ""), ("e2", "", " \n")), QUERIES,
                          [*JUDGED[:2], JUDGED[0], ("q2", "d20", 0)])
    data = read_data(folder, "test")
    assert data.num_documents == 6 and data.gains["q2"] == {"d20": 0}
    assert "2 of 6 documents have neither title nor text: embedded as the empty text" in logged.text
    assert "1 of 2 queries have no relevant document: they count as 0" in logged.text
    assert "left out 1 lines that repeat a judgement" in logged.text


HEADER = "query-id\tcorpus-id\tscore"


@pytest.mark.parametrize("lines, message", [
    ([], "test.tsv judges no document"),
    (["q1\td0\t0.5"], "test.tsv:1: neither a judgement .its score '0.5' is not an integer. nor a header"),
    (["query-id\tscore\tsplit"], "test.tsv:1: a header names query-id, corpus-id and score once each"),
    (["q1\td0"], "test.tsv:1: 2 columns; expected query-id, corpus-id, score, or TREC's"),
    ([HEADER], "test.tsv judges no document"),
    ([HEADER, "q1\td0\t1", "q1\td0"], "test.tsv:3: 2 columns, but the first line has 3"),
    ([HEADER, "q1 0 d0 1"], "test.tsv:2: 4 columns, but the first line has 3"),
    ([HEADER, "q1\t\t1"], "test.tsv:2: an id is empty"),
    ([HEADER, "q1\td0\t0.5"], "test.tsv:2: the score is not an integer of at most nine digits: '0.5'"),
    ([HEADER, "q1\td0\t"], "test.tsv:2: the score is not an integer of at most nine digits: ''"),
    ([HEADER, f"q1\td0\t{'9' * 400}"], "test.tsv:2: the score is not an integer of at most nine digits: '9999"),
    ([HEADER, "q1\td0\t1_0"], "test.tsv:2: the score is not an integer of at most nine digits: '1_0'"),
    ([HEADER, "q1\td0\t1", "q1\td0\t2"],
     "test.tsv:3: query 'q1' and document 'd0' have the score 2, but 1 in an earlier line"),
    ([HEADER, "q9\td0\t1"], "queries.jsonl has no text for any of the 1 judged queries: 'q9'"),
    ([HEADER, "q1\td8\t1", "q2\td9\t0"], "corpus.jsonl has none of the 2 judged documents, such as 'd8'"),
])
def test_qrels_name_what_is_wrong(tmp_path, lines, message):
    write_folder(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", lines)
    with pytest.raises(ValueError, match=message):
        read_data(str(tmp_path), "test")


@pytest.mark.parametrize("name, line, message", [
    ("corpus", "{", "corpus.jsonl:5: not JSON: "),
    ("corpus", '["d9", "a"]', "corpus.jsonl:5: not a JSON object"),
    ("corpus", '{"text": "a"}', 'corpus.jsonl:5: "_id" is missing; the object has text'),
    ("corpus", '{"_id": 9, "text": "a"}', 'corpus.jsonl:5: "_id" is not a string: 9'),
    ("corpus", '{"_id": "d9", "text": "\\ud800"}', 'corpus.jsonl:5: "text" has half a surrogate pair'),
    ("corpus", '{"_id": "", "text": "a"}', 'corpus.jsonl:5: "_id" is empty'),
    ("corpus", '{"_id": "d9", "title": "a"}', 'corpus.jsonl:5: "text" is missing; the object has _id, title'),
    ("corpus", '{"_id": "d10", "text": "a"}', """corpus.jsonl:5: the "_id" 'd10' is also that of .*corpus.jsonl:2"""),
    ("queries", "{", "queries.jsonl:3: not JSON: "),
    ("queries", '{"_id": "q9", "text": ["a"]}', 'queries.jsonl:3: "text" is not a string: \\["a"\\]'),
    ("queries", '{"_id": "q1", "text": "a"}', """queries.jsonl:3: the "_id" 'q1' is also that of .*queries.jsonl:1"""),
])
def test_lines_name_what_is_wrong(tmp_path, name, line, message):
    folder = write_folder(tmp_path)
    with (tmp_path / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_data(folder, "test")


def test_judged_queries_without_text_are_left_out_and_judged_documents_that_are_missing_are_never_found(
        tmp_path, embedder, logged):
    judged = [("q1", "d0", 1), ("q1", "gone", 1), ("q2", "d20", 1), ("q3", "d0", 1), ("q4", "d0", 1)]
    folder = write_folder(tmp_path, queries=(("q1", "0"), ("q2", "20"), ("q3", " ")), judged=judged)
    results, _ = read_task(folder, "test").score(embedder)
    half = 1 / (1 + 1 / np.log2(3))
    assert {result.metric: result.value for result in results} == pytest.approx(
        {"ndcg@10": 50 * (half + 1), "mrr@10": 100, "recall@100": 75, "map@100": 75})
    assert {result.n for result in results} == {2}
    assert "left out 2 of 4 judged queries: they have no text" in logged.text
    message = "corpus.jsonl lacks 1 of 3 judged documents, such as 'gone': the documents of their 1 judgements count"
    assert message in logged.text


@pytest.mark.parametrize("lines", [
    ["q1\td0\t2", "q1\td10\t1", "q2\td20\t1"],
    ["q1 d0 2", "", "q1  d10 1", "q2 d20 1", " "],
    ["q1\t0\td0\t2", "q1\t0\td10\t1", "q2\t0\td20\t1"],
    ["q1 Q0 d0 2", "q1 Q0 d10 1", "q2 Q0 d20 1\r"],
    ["Query-ID\tCorpus-ID\tScore", "q1\td0\t2", "q1\td10\t1.0", "q2\td20\t1"],
    ["\ufeffscore query_id doc_id", "2 q1 d0", "1 q1 d10", "1 q2 d20"],
])
def test_the_forms_of_qrels(tmp_path, lines):
    folder = write_folder(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", lines)
    assert read_data(folder, "test").gains == {"q1": {"d0": 2, "d10": 1}, "q2": {"d20": 1}}


def test_blank_lines_and_null_titles_and_texts(tmp_path):
    folder = write_folder(tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('\n{"_id": "n1", "title": null, "text": "5"}\n{"_id": "n2", "title": "6", "text": null}\n\n')
    with (tmp_path / "queries.jsonl").open("a") as file:
        file.write("\n")
    data = read_data(folder, "test")
    assert [text for _, _, text in retrieval.read_documents(data.corpus)][-2:] == ["5", "6"]


def test_files_that_are_missing_or_damaged(tmp_path):
    folder = write_folder(tmp_path, split="train")
    with pytest.raises(ValueError, match=r"qrels/ has no test.tsv for --split=test; it has train.tsv$"):
        read_data(folder, "test")
    with pytest.raises(ValueError, match=r"--retrieval=elsewhere has neither corpus.jsonl nor corpus.jsonl.gz"):
        read_data("elsewhere", "test")
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has neither queries.jsonl nor queries.jsonl.gz"):
        read_data(folder, "train")
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "q1", "text": "1"}\n')[:-12])
    with pytest.raises(ValueError, match=r"queries.jsonl.gz: damaged gzip file after line"):
        read_data(folder, "train")


def test_embeddings_that_are_not_finite_are_named(tmp_path, embedder, monkeypatch):
    data = read_data(write_folder(tmp_path), "test")
    embedder([text for _, text in QUERIES])
    monkeypatch.setattr(embedder.encoder, "encode", lambda texts, **options: np.full((len(texts), 2), np.nan))
    with pytest.raises(ValueError, match="4 of 4 embeddings are not finite, first that of 'Angle 0'"):
        retrieve(embedder, data)


INFORMATION_RETRIEVAL_EVALUATOR = """
from sentence_transformers import SentenceTransformer
from sentence_transformers.evaluation import InformationRetrievalEvaluator

data = json.load(open(arguments["data"]))
evaluator = InformationRetrievalEvaluator(
    data["queries"], data["corpus"], {query: set(documents) for query, documents in data["relevant"].items()},
    mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[100], map_at_k=[100], accuracy_at_k=[10])
scores = evaluator(SentenceTransformer(arguments["model"], device="cpu"))
result = [scores["cosine_" + name] for name in ("ndcg@10", "mrr@10", "recall@100", "map@100")]
"""


def test_the_real_model_equals_sentence_transformers_own_evaluator(peer, minilm, tmp_path):
    """Documents of words drawn from a small vocabulary; a query shares some of its relevant documents' words."""
    from inference.encoder import Encoder

    generator = np.random.default_rng(0)
    words = ["river", "stone", "green", "walk", "seven", "music", "paper", "cloud", "open", "train", "glass", "north"]
    documents = {f"d{number}": " ".join(generator.choice(words, generator.integers(2, 12))) for number in range(200)}
    relevant = {f"q{number}": [f"d{document}" for document in generator.permutation(200)[:generator.integers(1, 6)]]
                for number in range(30)}
    queries = {query: " ".join(generator.permutation(" ".join(documents[name] for name in names).split())[:6])
               for query, names in relevant.items()}
    write_folder(tmp_path, [(name, "", text) for name, text in documents.items()], list(queries.items()),
                 [(query, name, 1) for query, names in relevant.items() for name in names])
    (tmp_path / "data.json").write_text(json.dumps({"queries": queries, "corpus": documents, "relevant": relevant}))
    expected = peer(INFORMATION_RETRIEVAL_EVALUATOR, data=str(tmp_path / "data.json"), model=str(minilm))
    results, _ = read_task(str(tmp_path), "test").score(Embedder(Encoder.load(minilm)))
    assert [result.value for result in results] == pytest.approx([100 * value for value in expected], abs=0.01)
    assert 10 < results[0].value < 90
