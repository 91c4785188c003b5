import numpy as np
import pytest
import scipy.stats

from evaluation.measures.bootstrap import (
    bootstrap_mrr,
    bootstrap_spearman,
    mean_score,
    percentile_interval,
    resampled,
    spearman_score,
)


def two_models(seed, noise_of_first, noise_of_second, n=300):
    generator = np.random.default_rng(seed)
    human = generator.integers(6, size=n).astype(float)
    return [human + generator.normal(size=n) * noise for noise in (noise_of_first, noise_of_second)] + [human]


def test_a_clear_gain_is_found():
    first, second, human = two_models(0, 3.0, 1.0)
    result = bootstrap_spearman(first, second, human, resamples=200)
    expected = scipy.stats.spearmanr(second, human).statistic - scipy.stats.spearmanr(first, human).statistic
    assert result.difference == pytest.approx(expected)
    assert 0 < result.low < result.difference < result.high and result.share_not_above == 0
    reverse = bootstrap_spearman(second, first, human, resamples=200)
    assert reverse.share_not_above == 1 and reverse.high == pytest.approx(-result.low)


def test_equally_good_models_are_not_told_apart():
    shares = [bootstrap_spearman(*two_models(seed, 2.0, 2.0), resamples=100).share_not_above for seed in range(20)]
    assert 0.2 < np.mean(shares) < 0.8


def test_interval_has_the_width_of_scipys_paired_bootstrap():
    generator = np.random.default_rng(5)
    first, second = generator.integers(1, 15, size=(2, 200))
    result = bootstrap_mrr(first, second, resamples=2000)

    def difference(first, second):
        return np.mean(np.where(second <= 10, 1 / second, 0)) - np.mean(np.where(first <= 10, 1 / first, 0))

    expected = scipy.stats.bootstrap((first, second), difference, paired=True, method="percentile", n_resamples=2000,
                                     vectorized=False, rng=1).confidence_interval
    assert result.difference == pytest.approx(difference(first, second))
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=0.01)


def test_the_same_scores_are_not_ahead():
    ranks = np.arange(1, 50)
    assert bootstrap_mrr(ranks, ranks, resamples=50) == (0.0, 0.0, 0.0, 1.0)


def test_other_pairs_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        bootstrap_mrr(np.ones(3), np.ones(4))


@pytest.mark.parametrize("seed", range(5))
def test_spearman_of_each_draw_is_scipys(seed):
    generator = np.random.default_rng(seed)
    gold = generator.integers(1 + seed, size=50 + seed) + generator.choice([0, 0.5], 50 + seed)  # many ties
    cosines = np.round(gold + generator.normal(size=len(gold)), 1)
    values = resampled(spearman_score(cosines, gold), len(gold), resamples=40, seed=seed)
    draws = np.random.default_rng(seed)
    rows = [draws.integers(len(gold), size=len(gold)) for _ in range(40)]
    expected = [scipy.stats.spearmanr(cosines[of_draw], gold[of_draw]).statistic for of_draw in rows]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def test_interval_of_a_spearman_correlation_is_scipys():
    first, _, human = two_models(3, 2.0, 1.0, n=150)
    interval = percentile_interval(resampled(spearman_score(first, human), 150, resamples=4000), 0.9)
    expected = scipy.stats.bootstrap(
        (first, human), lambda x, y: scipy.stats.spearmanr(x, y).statistic, paired=True, method="percentile",
        n_resamples=4000, confidence_level=0.9, vectorized=False, rng=2).confidence_interval
    assert interval == (pytest.approx(expected.low, abs=0.01), pytest.approx(expected.high, abs=0.01))


def test_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(4).integers(0, 2, 80)
    interval = percentile_interval(resampled(mean_score(values), 80, resamples=4000))
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=3)
    expected = expected.confidence_interval
    assert interval == (pytest.approx(expected.low, abs=0.013), pytest.approx(expected.high, abs=0.013))


def test_an_undefined_correlation_is_an_error():
    with pytest.raises(ValueError, match="all 3 values of the second input"):
        spearman_score(np.arange(3.0), np.ones(3))
    with pytest.raises(ValueError, match="a draw from the 2 pairs has only one value"):
        resampled(spearman_score(np.arange(2.0), np.arange(2.0)), 2)
