"""Pooling of packed texts, heads and normalisation against numpy; empty slots."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from model.config import POOLING_MODES, DenseConfig, EncoderConfig, ModelConfig
from model.parameters import declare, initialize
from model.pooling import embed, normalize, pool
from tests.texts import pack_texts

LENGTHS = [5, 17, 0, 3, 30, 1, 8, 0, 12]  # 0: an empty slot


@pytest.mark.parametrize("pooling", POOLING_MODES)
def test_pool_equals_numpy(pooling):
    generator = np.random.default_rng(0)
    packed = pack_texts([np.full(size, 7, np.int32) for size in LENGTHS], None, 32, 0, num_rows=4)
    hidden = generator.standard_normal((4, 32, 6)).astype(np.float32)
    weights = generator.standard_normal((1, len(LENGTHS), 6)).astype(np.float32)
    arrays = packed.segments[0], packed.positions[0], packed.text_rows, packed.text_segments
    found, vjp = jax.vjp(lambda hidden: pool(hidden, pooling, *arrays), hidden)
    gradient = vjp(jnp.where(packed.text_segments[..., None] > 0, weights, 0.0))[0]
    expected_gradient = np.zeros_like(hidden)
    for index, size in enumerate(LENGTHS):
        if size:
            row, segment = packed.text_rows[0, index], packed.text_segments[0, index]
            own = packed.segments[0, row] == segment
            tokens, number = hidden[row][own], np.arange(size)[:, None]
            share = {
                "mean": np.full((size, 6), 1 / size), "cls": number == 0, "max": tokens == tokens.max(0),
                "mean_sqrt_len_tokens": np.full((size, 6), size ** -0.5), "lasttoken": number == size - 1,
                "weightedmean": (number + 1) / (size * (size + 1) / 2),
            }[pooling]
            np.testing.assert_allclose(found[0, index], (share * tokens).sum(0), atol=1e-6)
            expected_gradient[row, own] = share * weights[0, index]
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_several_modes_are_concatenated_in_their_order():
    generator = np.random.default_rng(0)
    packed = pack_texts([np.full(size, 7, np.int32) for size in LENGTHS], None, 32, 0, num_rows=4)
    hidden = generator.standard_normal((4, 32, 6)).astype(np.float32)
    arrays = packed.segments[0], packed.positions[0], packed.text_rows, packed.text_segments
    modes = ("mean", "cls", "max", "mean")
    np.testing.assert_array_equal(pool(hidden, "+".join(modes), *arrays), np.concatenate(
        [pool(hidden, mode, *arrays) for mode in modes], axis=-1))


ACTIVATIONS = {
    "tanh": np.tanh, "identity": lambda x: x, "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * scipy.stats.norm.cdf(x), "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("pooling, is_normalized, activation", [
    ("mean", True, "tanh"), ("max", False, "identity"), ("pooler", True, "gelu"), ("cls+mean", False, "relu"),
    ("lasttoken", False, "sigmoid"), ("weightedmean+max+cls", True, "silu"),
])
def test_heads_and_empty_slots(pooling, is_normalized, activation):
    encoder = EncoderConfig("bert", 50, 8, 1, 2, 16, 32, 2, "gelu", 1e-12, 0.1, 0.1, 0, 0, 0.5, True)
    width = 8 * len(pooling.split("+"))
    heads = (DenseConfig(width, 12, True, activation), DenseConfig(12, 5, False, "identity", is_normalized))
    config = ModelConfig(encoder, pooling, heads, is_normalized, 32)
    parameters = jax.tree.map(np.asarray, initialize(declare(config), jax.random.key(0)))
    parameters["pooler"]["bias"] = parameters["pooler"]["bias"] + 0.3
    generator = np.random.default_rng(1)
    packed = pack_texts([generator.integers(1, 50, size).astype(np.int32) for size in LENGTHS], None, 32, 0)
    found = np.asarray(embed(parameters, config, packed))
    assert found.shape == (1, len(LENGTHS), config.embedding_size) and found.dtype == np.float32
    empty = np.array(LENGTHS) == 0
    assert (found[0, empty] == 0).all()

    plain = dataclasses.replace(config, pooling="cls" if pooling == "pooler" else pooling, dense=(), normalize=False)
    expected = np.asarray(embed(parameters, plain, packed))[0]
    if pooling == "pooler":
        expected = np.tanh(expected @ parameters["pooler"]["kernel"] + parameters["pooler"]["bias"])
    expected = ACTIVATIONS[activation](expected @ parameters["dense_0"]["kernel"] + parameters["dense_0"]["bias"])
    if is_normalized:
        expected /= np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1e-30)
    expected = expected @ parameters["dense_1"]["kernel"]
    if is_normalized:
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found[0, ~empty], expected[~empty], atol=2e-6)
    gradient = jax.grad(lambda p: (embed(p, config, packed) ** 3).sum())(parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for name in ("dense_0", "dense_1"):
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient[name]))


def test_normalize_of_zero_has_zero_gradient():
    x = jnp.stack([jnp.zeros(4), jnp.arange(4.0)])
    np.testing.assert_allclose(jnp.linalg.norm(normalize(x), axis=-1), [0, 1], atol=1e-6)
    gradient = jax.grad(lambda x: (normalize(x) * jnp.array([[1.0, 2, 3, 5]])).sum())(x)
    assert (gradient[0] == 0).all() and np.isfinite(gradient).all() and np.abs(gradient[1]).max() > 0.1
