import gzip

import numpy as np
import pytest
import scipy.stats

from evaluation.metrics import average_ranks, spearman
from evaluation.sts import StsPair, evaluate_sts, read_sts

HEADER = "sentence1\tsentence2\tscore\tsplit\tsource"


def write(path, *lines):
    text = "".join(line + "\n" for line in (HEADER, *lines)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("distinct", [3, 20, 10**6])  # few distinct values: many ties
def test_spearman_equals_scipy(seed, distinct):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(2, 400))
    x, y = generator.integers(distinct, size=(2, n)) / 7
    x[0], y[0] = x[1] + 1, y[1] - 1  # not constant
    np.testing.assert_array_equal(average_ranks(x), scipy.stats.rankdata(x))
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_of_opposite_orders():
    assert spearman(np.array([1.0, 2, 3]), np.array([9.0, 4, 1])) == pytest.approx(-1)


@pytest.mark.parametrize("x, message", [
    ([1.0, 1, 1], "all 3 values of the first input are 1.0"),
    ([1.0, np.nan, 2], "1 of 3 values of the first input are not finite"),
    ([1.0, 2], r"\(2,\) and \(3,\)"),
])
def test_spearman_undefined(x, message):
    with pytest.raises(ValueError, match=message):
        spearman(np.array(x), np.array([1.0, 2, 3]))


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_read_sts_chooses_the_split_and_keeps_the_text(tmp_path, name):
    odd = 'He said "no \u2028 more\u00a0'  # an unpaired quote, a Unicode line end
    path = write(tmp_path / name, "A\tB\t4.5\tdev\tx", f"{odd}\tC d\t0\ttest\ty", "E\tF\t5\ttest\tz\r")
    assert read_sts(path, "test") == [StsPair(odd, "C d", 0.0), StsPair("E", "F", 5.0)]
    assert len(read_sts(path)) == 3


def test_read_sts_accepts_a_byte_order_mark_and_more_columns(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("\ufeffsource\tsentence1\tsentence2\tscore\nx\tA\tB\t1\n")
    assert read_sts(path) == [StsPair("A", "B", 1.0)]


@pytest.mark.parametrize("line, message", [
    ("A\tB\t1\tdev", "a.tsv:3: 4 tab-separated columns, but the header has 5"),
    ("A\tB\tC\t1\tdev\tx", "a.tsv:3: 6 tab-separated columns, but the header has 5"),
    ("A\tB\tgood\tdev\tx", "a.tsv:3: score is not a finite number: 'good'"),
    ("A\tB\tnan\tdev\tx", "a.tsv:3: score is not a finite number: 'nan'"),
    ("A\t \t1\tdev\tx", "a.tsv:3: sentence2 is empty"),
    ("", "a.tsv:3: 1 tab-separated columns"),
])
def test_read_sts_names_the_line(tmp_path, line, message):
    path = write(tmp_path / "a.tsv", "A\tB\t1\ttest\tx", line)
    with pytest.raises(ValueError, match=message):
        read_sts(path, "test")


def test_read_sts_names_what_is_wrong_with_the_file(tmp_path):
    path = write(tmp_path / "a.tsv", "A\tB\t1\ttest\tx")
    with pytest.raises(ValueError, match="no row of the split 'dev'; it has test"):
        read_sts(path, "dev")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.tsv:1: the header lacks sentence1, sentence2, score"):
        read_sts(path)
    path.write_bytes(HEADER.encode() + b"\nA\tB\xff\t1\ttest\tx\n")
    with pytest.raises(ValueError, match=r"a.tsv:2: not UTF-8"):
        read_sts(path)
    whole = write(tmp_path / "b.tsv.gz", *[f"A {i}\tB\t1\ttest\tx" for i in range(5000)]).read_bytes()
    (tmp_path / "b.tsv.gz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r"b.tsv.gz: damaged gzip file"):
        read_sts(tmp_path / "b.tsv.gz")
    with pytest.raises(OSError, match=r"missing.tsv"):
        read_sts(tmp_path / "missing.tsv")


def test_evaluate_sts_is_the_rank_correlation_of_cosines():
    generator = np.random.default_rng(3)
    n, d = 50, 8
    first, second = generator.normal(size=(2, n, d)) * generator.uniform(0.1, 9, size=(2, n, 1))  # any length
    rows = {f"a{i}": first[i] for i in range(n)} | {f"b{i}": second[i] for i in range(n)}
    human = generator.integers(6, size=n).astype(float)
    scores = evaluate_sts(lambda texts: np.array([rows[text] for text in texts]),
                          [StsPair(f"a{i}", f"b{i}", human[i]) for i in range(n)])
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(scores.cosines, cosines, atol=1e-6)
    assert scores.spearman == pytest.approx(scipy.stats.spearmanr(cosines, human).statistic, abs=1e-9)


@pytest.mark.parametrize("embeddings, message", [
    (np.full((4, 2), np.nan), "4 of 4 embeddings are not finite, first that of 'a'"),
    (np.ones((3, 2)), r"\(3, 2\) for 4 texts"),
    (np.ones((4, 2)), "all 2 values of the first input"),
])
def test_evaluate_sts_of_a_broken_encoder(embeddings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_sts(lambda texts: embeddings, [StsPair("a", "b", 1.0), StsPair("c", "d", 2.0)])
