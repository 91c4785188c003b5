"""Whole weights from shares, and the gradients that return: equal to those of the whole array on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sharding.collectives import scatter_sum
from sharding.layout import DEVICES, SHARD, SPLIT, WHOLE, make_mesh
from sharding.shares import gather_share, look_up, reduce_gradient

SHARD_DEVICES = 4
ROWS, COLUMNS, TOKENS = 24, 8, 6  # of a table; tokens per device


def on_each_device(function, in_specs, out_specs):
    mesh = make_mesh(shard_devices=SHARD_DEVICES)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("spec", [PartitionSpec(SHARD), PartitionSpec(None, SHARD), WHOLE])
def test_gathering_a_share(spec):
    """On 2 replicas of 4 devices, each with a factor of its own: the gradient is the sum of the factors."""
    array, factors = random(ROWS, COLUMNS), random(8)

    def function(share, factor):
        def loss(share):
            return jnp.sum(jnp.sin(gather_share(share, array.shape, jnp.float32))) * factor[0]

        whole = gather_share(share, array.shape, jnp.float32)
        return whole, reduce_gradient(jax.grad(loss)(share), spec, spec)

    whole, gradient = on_each_device(function, (spec, SPLIT), (WHOLE, spec))(array, factors)
    np.testing.assert_array_equal(whole, array)
    np.testing.assert_allclose(gradient, np.cos(array) * factors.sum(), rtol=1e-5, atol=1e-6)


def test_a_share_is_sent_in_the_compute_dtype_and_its_gradient_summed_in_float32():
    array = random(ROWS, COLUMNS)
    spec = PartitionSpec(None, SHARD)

    def function(share):
        whole, pull_back = jax.vjp(lambda share: gather_share(share, array.shape, jnp.bfloat16), share)
        return whole, *pull_back(jnp.full(array.shape, 1 + 2**-12, jnp.float32))

    run = on_each_device(function, spec, (WHOLE, spec))
    whole, gradient = run(array)
    np.testing.assert_array_equal(whole, array.astype(jnp.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(gradient, np.full(array.shape, 4 * (1 + 2**-12), np.float32))
    assert "all_gather" in (text := run.lower(array).as_text()) and "bf16" in text


@pytest.mark.parametrize("spec", [PartitionSpec(SHARD), PartitionSpec(None, SHARD), WHOLE])
def test_looking_up_rows(spec):
    table, cotangent = random(ROWS, COLUMNS), random(8 * TOKENS, 1, COLUMNS)[:, 0]
    tokens = np.random.default_rng(0).integers(0, ROWS, 8 * TOKENS).astype(np.int32)

    def function(share, tokens, cotangent):
        rows, pull_back = jax.vjp(lambda share: look_up(share, tokens, table.shape, jnp.float32), share)
        return rows, reduce_gradient(*pull_back(cotangent), spec, spec)

    rows, gradient = on_each_device(function, (spec, SPLIT, SPLIT), (SPLIT, spec))(table, tokens, cotangent)
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, cotangent)
    np.testing.assert_array_equal(rows, table[tokens])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parameter, reduced", [
    (WHOLE, WHOLE), (WHOLE, PartitionSpec(SHARD)), (WHOLE, PartitionSpec(None, SHARD))])
def test_reducing_a_gradient(parameter, reduced):
    gradients = random(8, ROWS, COLUMNS)
    total = on_each_device(lambda gradient: reduce_gradient(gradient[0], parameter, reduced), SPLIT, reduced)(gradients)
    np.testing.assert_allclose(total, gradients.sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scattering_over_several_mesh_axes(axis):
    arrays = random(8, 16, 8, 24)
    out = PartitionSpec(*[None] * axis, DEVICES)
    total = on_each_device(lambda array: scatter_sum(array[0], DEVICES, axis), SPLIT, out)(arrays)
    np.testing.assert_allclose(total, arrays.sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape, message", [
    ((ROWS, COLUMNS, 1), "no part of an array of shape"), ((ROWS + 1, COLUMNS), "on 4 devices is no part"),
    ((2 * ROWS, 2 * COLUMNS), "on 4 devices is no part")])
def test_what_is_no_share_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        on_each_device(functools.partial(gather_share, shape=shape, dtype=jnp.float32), WHOLE, WHOLE)(
            random(ROWS, COLUMNS))
