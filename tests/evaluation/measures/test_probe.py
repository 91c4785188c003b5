import jax
import numpy as np
import pytest

from evaluation.measures import probe
from evaluation.measures.probe import Pairs, fit, predict
from evaluation.tasks.transfer import snli_features
from sharding.layout import make_mesh

STRENGTHS = (0.25, 8.0)


def features_of(pairs, features):
    return np.concatenate(features(pairs.first.astype(np.float64), pairs.second.astype(np.float64)), axis=1)


def problem(generator, n, d, scales):
    """Pairs whose label depends on |u - v|, with noise, of dimensions of different scale."""
    first, second = scales * generator.normal(size=(2, n, d)) + scales / 2
    score = abs(first - second) @ (generator.normal(size=(d, 3)) / scales[:, None])
    labels = (score + generator.gumbel(size=(n, 3))).argmax(axis=1)
    labels[:3] = 0, 1, 2
    return Pairs(first.astype(np.float32), second.astype(np.float32), labels)


def gradient(weights, intercepts, values, labels, strength):
    """Of 1/2 ||W||^2 + C sum CE, one class after the other in float64."""
    logits = values @ weights.astype(np.float64) + intercepts
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    by_class = [values.T @ (shares[:, label] - (labels == label)) for label in range(3)]
    sums = [(shares[:, label] - (labels == label)).sum() for label in range(3)]
    return weights + strength * np.stack(by_class, axis=1), strength * np.array(sums)


@pytest.fixture(scope="module")
def case():
    """A problem whose dimensions differ a hundredfold, two subsets of it, and fits of both on 1 and on 8 devices."""
    generator = np.random.default_rng()
    pairs = problem(generator, 203, 6, np.array([0.05, 0.1, 0.3, 1.0, 2.0, 5.0]))
    subsets = np.stack([np.ones(203, bool), generator.random(203) < 0.7], axis=1)
    subsets[:3] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "BLOCK_ROWS", 16)  # 203 pairs: 13 blocks on one device, 2 on each of eight
        fits = {count: fit(pairs, subsets, STRENGTHS, snli_features, 3, mesh=make_mesh(jax.devices()[:count]))
                for count in (1, 8)}
    return pairs, subsets, fits


@pytest.mark.parametrize("devices", [1, 8])
def test_the_gradient_at_the_fit_is_zero(case, devices):
    pairs, subsets, fits = case
    values = features_of(pairs, snli_features)
    for strength, fitted in zip(STRENGTHS, fits[devices]):
        for column, members in enumerate(subsets.T):
            by_weight, by_intercept = gradient(
                fitted.weights[:, column], fitted.intercepts[column], values[members], pairs.labels[members], strength)
            room = strength * (members.sum() + abs(values[members]).sum(axis=0))[:, None]  # of terms that cancel
            assert (abs(by_weight) / room).max() < 1e-5
            assert abs(by_intercept).max() < 1e-5 * strength * members.sum()


def test_the_fit_is_scikit_learns_on_one_device_and_on_eight(case, peer, tmp_path):
    pairs, subsets, fits = case
    values = features_of(pairs, snli_features)
    np.savez(tmp_path / "case.npz", values=values, labels=pairs.labels, subsets=subsets)
    expected = peer(
        "import numpy as np\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "case = np.load(arguments['path'])\n"
        "def fit(rows, strength):\n"
        "    model = LogisticRegression(C=strength, tol=1e-6, solver='newton-cg', max_iter=1000)\n"
        "    model.fit(case['values'][rows], case['labels'][rows])\n"
        "    return [model.coef_.T.tolist(), (model.intercept_ - model.intercept_.mean()).tolist(),\n"
        "            model.predict(case['values']).tolist()]\n"
        "result = [[fit(rows, strength) for rows in case['subsets'].T] for strength in arguments['strengths']]",
        path=str(tmp_path / "case.npz"), strengths=STRENGTHS)
    for fitted_probes in fits.values():
        for fitted, subset_fits in zip(fitted_probes, expected):
            predicted = predict(fitted, pairs, snli_features)
            for column, (weights, intercepts, classes) in enumerate(subset_fits):
                np.testing.assert_allclose(fitted.weights[:, column], weights, atol=2e-3)
                centred = fitted.intercepts[column] - fitted.intercepts[column].mean()
                np.testing.assert_allclose(centred, intercepts, atol=2e-3)
                np.testing.assert_array_equal(predicted[:, column], classes)


def test_a_class_without_pairs_and_embeddings_beyond_float32(case):
    pairs, subsets, _ = case
    subsets = subsets & np.stack([np.ones(203, bool), pairs.labels != 1], axis=1)
    with pytest.raises(ValueError, match=f"none of the {subsets[:, 1].sum()} pairs .* learns from has class 1"):
        fit(pairs, subsets, STRENGTHS, snli_features, 3)
    with pytest.raises(ValueError, match=r"the probe with C=0.25 is not finite after"):
        fit(pairs._replace(first=pairs.first * np.float32(1e30)), case[1], STRENGTHS, snli_features, 3)
