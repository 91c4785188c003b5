"""Masks: the right rate, independent bits, and a function of their names alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.dropout import DropoutSeed, dropout, keep_mask, row_keys, site_keys


def masks(seed=0, step=0, first_block=0, num_blocks=1, num_rows=4, layer=0, site=1, shape=(32, 48), rate=0.1):
    keys = site_keys(row_keys(DropoutSeed(seed, step), first_block, num_blocks, num_rows), layer, site)
    return np.asarray(keep_mask(keys, (num_blocks * num_rows, *shape), rate))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate(rate):
    dropped = ~masks(num_rows=64, shape=(64, 64), rate=rate)
    spread = np.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) < 4 * spread / np.sqrt(dropped.size)
    for axes in ((1, 2), (0, 2), (0, 1)):  # of each row, each token, each feature
        deviation = (dropped.mean(axes) - rate) * np.sqrt(4096 * 64 / dropped.shape[({0, 1, 2} - set(axes)).pop()])
        assert 0.7 < deviation.std() / spread < 1.35
        assert np.abs(deviation).max() < 4.5 * spread


def test_different_names_give_independent_masks():
    names = [{}, {"seed": 1}, {"step": 1}, {"first_block": 1}, {"layer": 1}, {"site": 2}, {"seed": 1, "step": 1}]
    found = [~masks(num_rows=16, **name) for name in names]
    found += [np.roll(found[0], 1, axis=axis) for axis in range(3)]  # neighbouring rows, tokens and features
    flat = np.stack([mask.reshape(-1) for mask in found]).astype(np.float64)
    correlation = np.corrcoef(flat) - np.eye(len(found))
    assert np.abs(correlation).max() < 5 / np.sqrt(flat.shape[1])


def test_masks_depend_on_the_global_row_alone():
    whole = masks(num_blocks=4, num_rows=6)
    np.testing.assert_array_equal(masks(first_block=2, num_blocks=2, num_rows=6), whole[12:])
    longer = masks(num_blocks=4, num_rows=9).reshape(4, 9, 32, 48)
    np.testing.assert_array_equal(longer[:, :6].reshape(24, 32, 48), whole)
    traced = jax.jit(lambda seed, step, block: row_keys(DropoutSeed(seed, step), block, 1, 6))(0, 0, 3)
    np.testing.assert_array_equal(keep_mask(site_keys(traced, 0, 1), (6, 32, 48), 0.1), whole[18:])


def test_the_mean_is_kept_and_the_gradient_has_the_same_mask():
    keys = row_keys(DropoutSeed(3, 4), 0, 1, 8)
    x = jax.random.uniform(jax.random.key(0), (8, 40, 32)) + 1
    out, vjp = jax.vjp(lambda x: dropout(x, keys, 2, 3, 0.25), x)
    kept = np.asarray(out) != 0
    np.testing.assert_allclose(out, np.where(kept, x / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(vjp(jnp.ones_like(x))[0], kept / 0.75, rtol=1e-6)
    assert dropout(x, None, 2, 3, 0.25) is x and dropout(x, keys, 2, 3, 0.0) is x
