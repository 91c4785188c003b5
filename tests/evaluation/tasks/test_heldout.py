import gzip

import numpy as np
import pytest

from data.examples import Prompts
from evaluation.tasks import heldout
from evaluation.tasks.heldout import evaluate_pairs, mean_reciprocal_rank, read_pairs


def random_encoder(generator, texts, d):
    rows = {text: generator.normal(size=d) for text in texts}
    return lambda asked: np.array([rows[text] for text in asked])


@pytest.mark.parametrize("block", [7, 1000])
def test_ranks_equal_a_sort_of_each_querys_candidates(monkeypatch, block):
    monkeypatch.setattr(heldout, "QUERY_BLOCK", block)
    generator = np.random.default_rng(block)
    pairs = [(f"q{i}", f"p{i}") for i in range(60)]
    encode = random_encoder(generator, [text for pair in pairs for text in pair], d=3)
    scores = evaluate_pairs(encode, pairs)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = []
    for query, paired in pairs:
        order = sorted((text for _, text in pairs), key=lambda text: -cosine(*encode([query, text])))
        expected.append(1 + order.index(paired))
    np.testing.assert_array_equal(scores.ranks, expected)
    assert scores.accuracy_at_1 == np.mean([rank == 1 for rank in expected])
    assert scores.mrr_at_10 == pytest.approx(np.mean([1 / rank if rank <= 10 else 0 for rank in expected]))
    assert len(set(expected)) > 10  # the ranks differ, beyond the cutoff too


def test_perfect_and_planted_answers():
    pairs = [(f"q{i}", f"p{i}") for i in range(30)]
    encode = lambda texts: np.eye(30)[[int(text[1:]) for text in texts]]  # noqa: E731
    assert evaluate_pairs(encode, pairs)[:2] == (1.0, 1.0)
    shifted = [(query, f"p{(i + 1) % 30}") for i, (query, _) in enumerate(pairs)]
    scores = evaluate_pairs(encode, shifted)  # another text is nearest; the paired one ties with 28 others: last
    assert scores[:2] == (0.0, 0.0) and set(scores.ranks) == {30}


def test_queries_and_candidates_get_their_prompts():
    pairs = [("q0", "p0"), ("q1", "p0"), ("q2", "q2")]
    asked = []
    encode = lambda texts: asked.extend(texts) or np.ones((len(texts), 2))  # noqa: E731
    evaluate_pairs(encode, pairs, Prompts("query: ", "passage: "))
    assert asked == ["query: q0", "query: q1", "query: q2", "passage: p0", "passage: q2"]


def test_exact_duplicates_of_the_paired_text_are_correct():
    pairs = [("q0", "p0"), ("q00", "p0"), ("q1", "p1")]
    encode = lambda texts: np.array([[1.0, 0.0] if "0" in text else [0.0, 1.0] for text in texts])  # noqa: E731
    assert evaluate_pairs(encode, pairs).accuracy_at_1 == 1.0


def test_ties_with_another_text_are_pessimistic():
    scores = evaluate_pairs(lambda texts: np.ones((len(texts), 2)), [("q0", "p0"), ("q1", "p1")])
    assert scores[:2] == (0.0, 0.5)


def test_reciprocal_rank_cutoff():
    assert mean_reciprocal_rank(np.array([1, 10, 11])) == pytest.approx((1 + 0.1) / 3)


def test_read_pairs(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = ['["a","b é"]', '["c","d","negative"]', '{"query":"e","pos":["f","g"]}', '{"set":["h","i","j"]}']
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    assert read_pairs(path) == [("a", "b é"), ("c", "d"), ("e", "f"), ("h", "i")]


@pytest.mark.parametrize("line", ['["a"', '["a"]', '["a", 3]', '["a", " "]', '"a"'])
def test_read_pairs_names_the_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('["a","b"]\n' + line + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl:2: "):
        read_pairs(path)


def test_read_pairs_of_an_empty_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="has no lines"):
        read_pairs(path)
