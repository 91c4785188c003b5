import gzip
import math

import numpy as np
import pytest
import scipy.stats

from evaluation.files.sts_places import StsSet
from evaluation.measures.correlation import average_ranks, pearson, spearman
from evaluation.task import Result
from evaluation.tasks.sts import SEVEN, StsPair, evaluate_sts, mean_of_seven, read_sts, score_set

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
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("correlation", [spearman, pearson])
def test_correlation_of_opposite_orders_and_of_two_values(correlation):
    assert correlation(np.array([1.0, 2, 3]), np.array([9.0, 5, 1])) == pytest.approx(-1, abs=1e-15)
    assert correlation(np.array([0, 5]), np.array([-3.5, 1e9])) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("offset, scale", [(2.0**45, 1), (-1e15, 1), (0, 2.0**1000), (0, 2.0**-1000)])
def test_correlation_does_not_depend_on_offset_and_scale(offset, scale):
    generator = np.random.default_rng(0)
    x, y = generator.integers(9, size=(2, 50)).astype(float)
    for correlation, expected in ((pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr)):
        assert correlation(scale * x + offset, y) == pytest.approx(expected(x, y).statistic, abs=1e-12)
        assert correlation(y, scale * x + offset) == pytest.approx(expected(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("correlation", [spearman, pearson])
@pytest.mark.parametrize("x, message", [
    ([1.0, 1, 1], "all 3 values of the first input are 1.0"),
    ([1.0, np.nan, 2], "1 of 3 values of the first input are not finite"),
    ([1.0, np.inf, np.nan], "2 of 3 values of the first input are not finite"),
    ([1.0, 2], r"\(2,\) and \(3,\)"),
])
def test_correlation_undefined(correlation, x, message):
    with pytest.raises(ValueError, match=message):
        correlation(np.array(x), np.array([1.0, 2, 3]))
    with pytest.raises(ValueError, match=r"one length >= 2, not \(1,\) and \(1,\)"):
        correlation(np.array([1.0]), np.array([2.0]))


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


def pairs_at(*angles_and_scores):
    return [StsPair("0", str(angle), float(score)) for angle, score in angles_and_scores]


YEAR = {"first": pairs_at((10, 5), (20, 4), (30, 3), (40, 2.5)), "second": pairs_at((10, 2), (50, 1), (80, 4))}


def test_a_set_is_scored_as_a_whole_then_over_its_parts(angle_encoder):
    scores = score_set(angle_encoder.load("model-1").encode, StsSet("sts12", "test", YEAR, by_language=False))
    cosines = {name: [math.cos(math.radians(int(pair.sentence2))) for pair in pairs] for name, pairs in YEAR.items()}
    human = {name: [pair.score for pair in pairs] for name, pairs in YEAR.items()}
    together = cosines["first"] + cosines["second"], human["first"] + human["second"]

    def both(x, y):
        return [100 * correlation(x, y).statistic for correlation in (scipy.stats.spearmanr, scipy.stats.pearsonr)]

    of_parts = [both(cosines[part], human[part]) for part in YEAR]
    metrics = ("cosine_spearman", "cosine_pearson")
    assert scores.results == [
        *(Result("sts12", "test", metric, pytest.approx(value), 7) for metric, value in zip(metrics, both(*together))),
        *(Result("sts12", "test", f"{metric}_mean", pytest.approx(np.mean(values)), 2)
          for metric, values in zip(metrics, zip(*of_parts))),
        *(Result(f"sts12:{part}", "test", metric, pytest.approx(value), len(YEAR[part]))
          for part, both_values in zip(YEAR, of_parts) for metric, value in zip(metrics, both_values)),
    ]
    assert scores.items["part"] == ["first"] * 4 + ["second"] * 3
    assert scores.items["cosine"] == pytest.approx(together[0]) and scores.items["score"] == together[1]
    assert scores.items["sentence1"] == ["0"] * 7 and scores.items["sentence2"][3] == "40"
    assert all(type(column) is list for column in scores.items.values())


def test_languages_are_never_compared_with_each_other(angle_encoder):
    encode = angle_encoder.load("model-1").encode
    of_year = score_set(encode, StsSet("sts17", "test", YEAR, by_language=False))
    by_language = score_set(encode, StsSet("sts17", "test", YEAR, by_language=True))
    assert by_language.results == of_year.results[2:] and by_language.items == of_year.items
    alone = score_set(encode, StsSet("sts17", "test", {"de": YEAR["first"]}, by_language=True)).results
    assert [(result.task, result.metric) for result in alone] == [
        ("sts17", "cosine_spearman_mean"), ("sts17", "cosine_pearson_mean"),
        ("sts17:de", "cosine_spearman"), ("sts17:de", "cosine_pearson")]


def test_a_set_without_parts_has_two_results(angle_encoder):
    stsb = StsSet("stsb", "dev", {"stsb": YEAR["second"]}, by_language=False)
    results = score_set(angle_encoder.load("model-1").encode, stsb).results
    assert [result[:3] for result in results] == [("stsb", "dev", "cosine_spearman"), ("stsb", "dev", "cosine_pearson")]


@pytest.mark.parametrize("bad", [pairs_at((10, 3), (20, 3)), pairs_at((10, 3)), pairs_at((10, 3), (10, 4))])
def test_a_part_without_a_score_is_named_and_there_is_no_mean(angle_encoder, caplog, bad):
    encode = angle_encoder.load("model-1").encode
    results = score_set(encode, StsSet("sts12", "test", YEAR | {"odd": bad}, by_language=False)).results
    assert [(result.task, result.metric, result.n) for result in results] == [
        (task, metric, n) for task, n in (("sts12", 7 + len(bad)), ("sts12:first", 4), ("sts12:second", 3))
        for metric in ("cosine_spearman", "cosine_pearson")]
    assert "sts12:odd has no score, so there is no mean over the parts: Spearman correlation" in caplog.text
    with pytest.raises(ValueError, match="no part has a score; the first, odd: Spearman"):
        score_set(encode, StsSet("sts17", "test", {"odd": bad}, by_language=True))


def test_mean_of_seven(caplog):
    results = [Result(task, "test", "cosine_spearman", float(number), 9) for number, task in enumerate(SEVEN)]
    others = [Result("sts12", "test", "cosine_spearman_mean", 99.0, 5),
              Result("sts12:MSRpar", "test", "cosine_spearman", 99.0, 5),
              Result("sts17", "test", "cosine_spearman_mean", 99.0, 5),
              Result("mine", "test", "cosine_spearman", 99.0, 5)]
    assert mean_of_seven(others + results) == ("sts_mean", "test", "cosine_spearman", 3.0, 7)
    assert not caplog.text
    assert mean_of_seven(results[1:6] + others) == ("sts_mean_of_5", "test", "cosine_spearman", 3.0, 5)
    assert "sts_mean_of_5 is not the published mean: it lacks sts12, sickr" in caplog.text
    assert mean_of_seven(results[:1] + others) is None and mean_of_seven([]) is None
