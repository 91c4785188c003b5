import json
import math

import numpy as np
import pytest

from evaluation.measures.retrieval import METRICS, ranking_metrics, trec_order

PYTREC_EVAL = """
try:
    import pytrec_eval
except ImportError:
    result = None
else:
    measures = {"ndcg_cut.10", "recall.100", "map_cut.100"}
    found, cut, judged = json.load(open(arguments["rankings"]))
    result = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(found)
    ranks = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(cut)
    for query in result:
        result[query] |= ranks[query]
"""
NAMES = {"ndcg@10": "ndcg_cut_10", "mrr@10": "recip_rank", "recall@100": "recall_100", "map@100": "map_cut_100"}


def random_query(generator):
    """Graded gains, some negative, some of documents that are not found; few distinct scores, so that many tie."""
    documents = [f"d{number}" for number in generator.permutation(generator.integers(1, 400))]
    found = {document: float(np.float32(generator.integers(generator.integers(1, 50)) / 7 - 2))
             for document in documents[:generator.integers(0, 300)]}
    judged = generator.choice([*documents, "é", "not there"], generator.integers(1, len(documents) + 2), replace=False)
    return found, {str(document): int(generator.integers(-1, 4)) for document in judged}


def test_equal_to_pytrec_eval_on_random_rankings_with_ties(peer, tmp_path):
    generator = np.random.default_rng(0)
    queries = {f"q{number}": random_query(generator) for number in range(300)}
    queries |= {
        "one": ({"a": 0.5}, {"a": 1}), "irrelevant": ({"a": 0.5}, {"a": 0}), "not judged": ({"b": 1.0}, {"a": 1}),
        "nothing found": ({}, {"a": 1}), "below 0": ({"a": 1.0, "b": 0.5}, {"a": -1, "b": 2}),
        "all tie": (dict.fromkeys("abcdefghijklmn", 1.0), {"a": 1, "n": 3}),
    }
    found = {query: found for query, (found, _) in queries.items()}
    cut = {query: {document: scores[document] for document in trec_order(scores)[:10]}
           for query, scores in found.items()}
    judged = {query: judged for query, (_, judged) in queries.items()}
    (tmp_path / "rankings.json").write_text(json.dumps([found, cut, judged]))
    expected = peer(PYTREC_EVAL, rankings=str(tmp_path / "rankings.json"))
    if expected is None:
        pytest.skip("the peer environment has no pytrec_eval: pip install pytrec-eval-terrier there")
    assert set(expected) == set(queries)
    for query in queries:
        metrics = ranking_metrics(found[query], judged[query])
        assert metrics == {name: pytest.approx(expected[query][NAMES[name]], abs=1e-12) for name in METRICS}, query
    means = {name: np.mean([expected[query][NAMES[name]] for query in queries]) for name in METRICS}
    assert all(0.1 < mean < 0.9 for mean in means.values())  # the inputs are not all 0 or 1


def test_values_by_hand():
    found = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    metrics = ranking_metrics(found, {"b": 1, "d": 3, "a": 0, "elsewhere": 2})
    assert metrics == {
        "ndcg@10": pytest.approx((1 / math.log2(3) + 3 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / math.log2(4))),
        "mrr@10": 1 / 2,
        "recall@100": pytest.approx(2 / 3),
        "map@100": pytest.approx((1 / 2 + 2 / 4) / 3),
    }


def test_each_metric_stops_at_its_rank():
    found = {f"{number:03d}": -float(number) for number in range(1, 151)}
    assert ranking_metrics(found, {"010": 1})["mrr@10"] == pytest.approx(1 / 10)
    beyond_10 = ranking_metrics(found, {"011": 1})
    assert (beyond_10["mrr@10"], beyond_10["ndcg@10"]) == (0, 0)
    assert (beyond_10["recall@100"], beyond_10["map@100"]) == (1, pytest.approx(1 / 11))
    assert ranking_metrics(found, {"100": 1})["recall@100"] == 1
    assert ranking_metrics(found, {"101": 1}) == dict.fromkeys(METRICS, 0)


def test_equal_scores_are_ordered_by_id_the_last_first():
    assert trec_order({"a": 1.0, "c": 1.0, "B": 1.0, "b": 1.0, "é": 1.0, "z": 2.0, "10": 0.0, "9": 0.0}) == [
        "z", "é", "c", "b", "a", "B", "9", "10"]


def test_without_a_relevant_document_all_are_0():
    for found in ({}, {"a": 1.0}):
        for judged in ({"a": 0}, {"a": -1, "b": 0}, {}):
            assert ranking_metrics(found, judged) == dict.fromkeys(METRICS, 0)


def test_a_score_that_is_nan_is_an_error():
    with pytest.raises(ValueError, match="the score of document 'b' is NaN"):
        ranking_metrics({"a": 1.0, "b": math.nan}, {"a": 1})
