import gzip
import json

import numpy as np
import pytest

from evaluation.measures.reranking import average_precisions, reciprocal_ranks
from evaluation.tasks.reranking import Query, evaluate_reranking, read_file_task, read_queries, read_task


def write(path, *lines):
    text = "".join(line + "\n" for line in lines).encode()
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def query_line(query, positive, negative):
    return json.dumps({"query": query, "positive": positive, "negative": negative})


def encode(texts):
    """A text is an angle in degrees, its embedding that direction, of any length."""
    angles = np.radians([float(text) for text in texts])
    return 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ranked_lists(generator, count):
    """(relevant, scores) of queries with many ties, of one candidate, and of equal scores."""
    lists = [(np.array([True]), np.array([0.3])), (np.array([True, False, True, False]), np.zeros(4)),
             (np.array([False, True]), np.array([-1.0, -1.0])), (np.ones(3, bool), np.array([2.0, 1.0, 2.0]))]
    while len(lists) < count:
        size = generator.integers(1, 30)
        relevant = generator.random(size) < generator.choice([0.1, 0.5])
        relevant[generator.integers(size)] = True
        lists.append((relevant, generator.integers(-5, generator.choice([-3, 5, 100]), size) / 7))
    return lists


def flat(lists, generator):
    """All candidates in one shuffled list."""
    queries = np.concatenate([np.full(len(scores), query) for query, (_, scores) in enumerate(lists)])
    order = generator.permutation(len(queries))
    relevant, scores = (np.concatenate(column)[order] for column in zip(*lists))
    return queries[order], relevant, scores


def test_average_precision_is_scikit_learns(peer):
    generator = np.random.default_rng()
    lists = ranked_lists(generator, 200)
    expected = peer(
        "from sklearn.metrics import average_precision_score\n"
        "result = [average_precision_score(*lists) for lists in arguments['lists']]",
        lists=[[relevant.tolist(), scores.tolist()] for relevant, scores in lists])
    np.testing.assert_allclose(average_precisions(*flat(lists, generator)), expected, rtol=1e-12)


def test_reciprocal_ranks_by_sorting():
    generator = np.random.default_rng()
    lists = ranked_lists(generator, 200)
    expected = []
    for relevant, scores in lists:
        best_first = sorted(range(len(scores)), key=lambda place: (-scores[place], relevant[place]))  # positives last
        rank = 1 + [bool(relevant[place]) for place in best_first].index(True)
        expected.append(1 / rank if rank <= 10 else 0.0)
    np.testing.assert_allclose(reciprocal_ranks(*flat(lists, generator)), expected, rtol=1e-12)
    assert 0.0 in expected and 1.0 in expected


@pytest.mark.parametrize("metric", [average_precisions, reciprocal_ranks])
@pytest.mark.parametrize("arguments, message", [
    (([0, 0], [True, False], [0.5, np.nan]), "1 of 2 scores of candidates are not finite"),
    (([0, 1, 1], [True, False, False], [1.0, 2.0, 3.0]), "1 of 2 queries have no relevant candidate, first query 1"),
    (([], [], []), "at least one candidate"),
    (([0], [True, False], [1.0]), "1 queries, 2 judgements and 1 scores"),
])
def test_metrics_without_a_value(metric, arguments, message):
    queries, relevant, scores = arguments
    with pytest.raises(ValueError, match=message):
        metric(np.array(queries, int), np.array(relevant, bool), np.array(scores, float))


def test_reranking_equals_sentence_transformers(peer, tmp_path):
    """Its RerankingEvaluator, given the same embeddings of the same file."""
    generator = np.random.default_rng()
    texts = [str(angle) for angle in generator.uniform(0, 360, 120).round(3)]
    lines = []
    for _ in range(40):
        positives, negatives = generator.integers(0, 4), generator.integers(0, 25)
        drawn = [texts[row] for row in generator.permutation(len(texts))[:1 + positives + negatives]]
        lines.append((drawn[0], drawn[1:1 + positives], drawn[1 + positives:]))
    path = write(tmp_path / "stackoverflow.jsonl.gz", *(query_line(*line) for line in lines))
    expected = peer(
        "import gzip, math, torch\n"
        "from sentence_transformers.evaluation import RerankingEvaluator\n"
        "class Given(RerankingEvaluator):\n"
        "    def embed_inputs(self, model, texts, **options):\n"
        "        angles = [math.radians(float(text)) for text in texts]\n"
        "        return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float64)\n"
        "samples = [json.loads(line) for line in gzip.open(arguments['path'])]\n"
        "evaluator = Given(samples)\n"
        "scores = evaluator.compute_metrics(None)\n"
        "result = [float(scores['map']), float(scores['mrr']), len(evaluator.samples)]", path=str(path))
    task = read_file_task(str(path))
    assert task.name == "stackoverflow"
    scores = task.score(encode)
    assert [result[:3] for result in scores.results] == [
        ("stackoverflow", "heldout", "map"), ("stackoverflow", "heldout", "mrr@10")]
    assert [result.value / 100 for result in scores.results] == pytest.approx(expected[:2], abs=1e-6)
    assert [result.n for result in scores.results] == [expected[2]] * 2
    assert expected[2] < 40 and 20 < scores.results[0].value < 90
    for result in scores.results:
        assert 100 * np.mean(scores.items[result.metric]) == pytest.approx(result.value)
    assert len(scores.items["query"]) == expected[2] and set(scores.items["part"]) == {"stackoverflow"}


def test_equal_texts_tie_against_the_model():
    scores = evaluate_reranking(encode, [Query("0", ["10"], ["10", "20"]), Query("0", ["5", "40"], ["20"])])
    np.testing.assert_allclose(scores.average_precisions, [1 / 2, (1 + 2 / 3) / 2])
    np.testing.assert_allclose(scores.reciprocal_ranks, [1 / 2, 1])


def test_an_encoder_that_is_broken_is_named():
    with pytest.raises(ValueError, match="3 of 3 embeddings are not finite, first that of '0'"):
        evaluate_reranking(lambda texts: np.full((len(texts), 2), np.nan), [Query("0", ["1"], ["2"])])


def test_read_queries_leaves_out_what_has_no_positives_or_no_negatives(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", query_line("q", ["p \u2028"], ["n", "m"]), query_line("q", [], ["n"]),
                 '{"query": "r", "positive": ["p"], "negative": ["n"], "id": 7}', query_line("q", ["n"], []))
    with caplog.at_level("INFO", "absl"):
        assert read_queries(path) == [Query("q", ["p \u2028"], ["n", "m"]), Query("r", ["p"], ["n"])]
    assert "left out 2 without positives or without negatives" in caplog.text


@pytest.mark.parametrize("line, message", [
    ("{", "a.jsonl:2: not JSON"),
    ('["q", "p"]', "a.jsonl:2: not a JSON object: "),
    ('{}', "a.jsonl:2: the object lacks query, positive, negative; it has nothing"),
    ('{"query": "q", "pos": ["p"], "neg": []}',
     "a.jsonl:2: the object lacks positive, negative; it has query, pos, neg"),
    ('{"query": "q", "positive": "p", "negative": ["n"]}', 'a.jsonl:2: "positive" is not a list of texts: \'p\''),
    ('{"query": ["q"], "positive": ["p"], "negative": ["n"]}', 'a.jsonl:2: a text of "query" is not a string'),
    ('{"query": "q", "positive": ["p"], "negative": [1]}', 'a.jsonl:2: a text of "negative" is not a string: 1'),
    ('{"query": " ", "positive": ["p"], "negative": ["n"]}', 'a.jsonl:2: a text of "query" is empty'),
    ('{"query": "q", "positive": ["p", ""], "negative": ["n"]}', 'a.jsonl:2: a text of "positive" is empty'),
    ('{"query": "q", "positive": ["\\ud800"], "negative": ["n"]}', 'a.jsonl:2: a text of "positive" has half a surr'),
])
def test_read_queries_names_what_is_wrong(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_queries(write(tmp_path / "a.jsonl", query_line("q", ["p"], ["n"]), line))


def test_a_file_without_a_query_to_score(tmp_path):
    with pytest.raises(ValueError, match="has no query with a positive and a negative; it has 1 lines"):
        read_file_task(str(write(tmp_path / "a.jsonl", query_line("q", ["p"], []))))


TEXTS = ("1\t0\thow do i ?", "2\t10\tbody", "3\t 20 \tbody", "4\t\tan empty title", "5\t30\t", "6\t40\tbody",
         "7\t50\tbody")


def askubuntu(folder, *lines, texts=TEXTS, text_name="text_tokenized.txt.gz", split="test"):
    write(folder / text_name, *texts)
    write(folder / f"{split}.txt", *lines)
    return str(folder.parent if folder.name == "askubuntu" else folder)


@pytest.mark.parametrize("folder, text_name", [("askubuntu", "text_tokenized.txt.gz"), ("data", "text_tokenized.txt")])
def test_askubuntu(tmp_path, caplog, folder, text_name):
    data_dir = askubuntu(
        tmp_path / folder, "1\t3 5\t2 3 5\t9.5 8.25 7", "6\t\t2 3\t2 1", "7\t6 2\t6 5 1\t3 2 1", "5\t7\t1 2\t2 1",
        text_name=text_name)
    with caplog.at_level("INFO", "absl"):
        task = read_task(data_dir, "askubuntu", "test")
    assert "left out 2 similar questions that are not candidates" in caplog.text
    assert "left out 2 without a similar candidate" in caplog.text
    assert list(task.texts) == ["0", "20", "30", "10", "50", "40", "30", "0"]
    scores = task.score(encode)
    expected = [(1 / 2 + 2 / 3) / 2, 1.0]
    assert scores.results == [("askubuntu", "test", "map", pytest.approx(100 * np.mean(expected)), 2),
                              ("askubuntu", "test", "mrr@10", pytest.approx(75), 2)]
    assert scores.items == {"map": pytest.approx(expected), "mrr@10": [0.5, 1.0], "query": ["0", "50"],
                            "part": ["askubuntu"] * 2}


@pytest.mark.parametrize("lines, texts, message", [
    (("1\t3\t2 3\t9 8", "2\t3\t3"), TEXTS, r"test.txt:2: 3 tab-separated columns; expected query, similar, candidates"),
    (("1\t3\t2 3\t9 8 7",), TEXTS, "test.txt:1: 3 BM25 scores of 2 candidates"),
    (("1\t3\t2 3\t9 8", "1\t3\t2 3\t9 8"), TEXTS, "test.txt:2: the query 1 occurs twice"),
    (("1\t3\t2 3 2\t9 8 7",), TEXTS, "test.txt:1: the candidate question 2 occurs twice"),
    (("1\t3 3\t2 3\t9 8",), TEXTS, "test.txt:1: the similar question 3 occurs twice"),
    (("1\t3\t2 3\t9 8", "5\t3\t3 99\t2 1"), TEXTS, "test.txt:2: question 99 is not in .*text_tokenized.txt.gz"),
    (("1\t3\t2 3 4\t9 8 7",), TEXTS, "tokenized.txt.gz:4: the title of question 4 is empty; .*test.txt:1 needs it"),
    (("1\t3\t2 3\t9 8",), ("1\ta\tb", "2\ta"), "text_tokenized.txt.gz:2: 2 tab-separated columns; expected id, title"),
    (("1\t3\t2 3\t9 8",), (*TEXTS, "3\tx\ty"), "text_tokenized.txt.gz:8: the question 3 occurs twice"),
    (("1\t\t2 3\t9 8",), TEXTS, "test.txt has no query with a similar candidate; it has 1 lines"),
])
def test_askubuntu_names_what_is_wrong(tmp_path, lines, texts, message):
    with pytest.raises(ValueError, match=message):
        read_task(askubuntu(tmp_path / "askubuntu", *lines, texts=texts), "askubuntu", "test")


def test_askubuntu_without_a_file(tmp_path):
    data_dir = askubuntu(tmp_path / "askubuntu", "1\t3\t2 3\t9 8")
    with pytest.raises(ValueError, match=r"needs the split 'dev': .*askubuntu has no dev.txt"):
        read_task(data_dir, "askubuntu", "dev")
    (tmp_path / "askubuntu" / "text_tokenized.txt.gz").unlink()
    with pytest.raises(ValueError, match=r"needs the texts: .* has no text_tokenized.txt.gz and no text_tokenized.txt"):
        read_task(data_dir, "askubuntu", "test")


def test_scidocs_is_the_mean_of_four_maps(tmp_path):
    folder = tmp_path / "scidocs"
    write(folder / "cite.jsonl", query_line("0", ["1"], ["2"]))
    write(folder / "cocite.jsonl.gz", query_line("0", ["2"], ["1"]), query_line("5", ["90"], ["1", "2", "3"]))
    write(folder / "coview" / "test.jsonl", query_line("0", ["2", "3"], ["1"]))
    with pytest.raises(ValueError, match=r"needs the split 'test' of all of .*: .*scidocs has no coread/test.jsonl"):
        read_task(str(tmp_path), "scidocs", "test")
    write(folder / "coread" / "test.jsonl.gz", query_line("0", ["2"], ["3"]))
    scores = read_task(str(tmp_path), "scidocs", "test").score(encode)
    maps = [100, 100 * (1 / 2 + 1 / 4) / 2, 100 * (1 / 2 + 2 / 3) / 2, 100]
    values = [(result.task, result.metric, result.value, result.n) for result in scores.results]
    assert values[:4] == [
        ("scidocs", "map", pytest.approx(sum(maps) / 4), 4), ("scidocs:cite", "map", pytest.approx(maps[0]), 1),
        ("scidocs:cite", "mrr@10", pytest.approx(100), 1), ("scidocs:cocite", "map", pytest.approx(maps[1]), 2)]
    assert [value[2] for value in values[1::2]] == pytest.approx(maps) and len(values) == 9
    assert scores.items["part"] == ["cite", "cocite", "cocite", "coview", "coread"]
    with pytest.raises(ValueError, match="needs the split 'dev'"):
        read_task(str(tmp_path), "scidocs", "dev")
