"""Keys gathered, passed round a ring, and passed round it both ways: the same loss, gradients and training steps."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernels.contrastive import xla
from plan.counts import matrix_flops
from sharding.layout import DEVICES, SPLIT, WHOLE, make_layout, make_mesh
from tests.training.test_parallel import (
    ONE_LAYER,
    assert_trees_close,
    feed,
    first_state,
    make_objective,
    make_step,
    pack,
    random_texts,
)
from training.objectives.contrastive import KeyExchange, batch_metrics, contrastive_loss

EXCHANGES = KeyExchange.__args__
BLOCKS, EXAMPLES, WIDTH = 24, 3, 16  # packing blocks, examples a block: 9 examples on each of 8 devices


def random_embeddings(texts_per_example: int):
    """Unit vectors [P, K * m, d], and text ids [P, K * m, 2] of which many come twice, on one device and on two."""
    rng = np.random.default_rng(texts_per_example)
    embeddings = rng.standard_normal((BLOCKS, texts_per_example * EXAMPLES, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    ids = rng.integers(1, 100, (*embeddings.shape[:2], 2)).astype(np.uint32)
    ids[..., 1] = 7
    if texts_per_example == 3:
        ids[[0, 5], 2 * EXAMPLES] = 0  # two examples without a negative
    return embeddings, ids


def loss_and_gradients(key_exchange: str, num_devices: int, embeddings, ids, **options):
    """The loss, its gradients for the embeddings and the scale, and the batch's metrics."""
    return compiled_loss(key_exchange, num_devices, **options)(embeddings, jnp.float32(20.0), ids)


@functools.cache
def compiled_loss(key_exchange: str, num_devices: int, **options):
    options |= {"axis_name": DEVICES, "key_exchange": key_exchange}

    @functools.partial(jax.shard_map, mesh=make_mesh(jax.devices()[:num_devices]), in_specs=(SPLIT, WHOLE, SPLIT),
                       out_specs=(WHOLE, (SPLIT, WHOLE), WHOLE), check_vma=False)
    def on_each_device(embeddings, scale, ids):
        def share(embeddings, scale):
            return contrastive_loss(embeddings, ids, scale=scale, **options)

        (loss, sums), (gradient, scale_gradient) = jax.value_and_grad(
            share, argnums=(0, 1), has_aux=True)(embeddings, scale)
        loss, scale_gradient, sums = jax.lax.psum((loss, scale_gradient, sums), DEVICES)
        return loss, (gradient, scale_gradient), batch_metrics(sums)

    return jax.jit(on_each_device)


@pytest.mark.parametrize("texts_per_example, symmetric", [(2, True), (2, False), (3, False), (3, True)])
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_same_loss_and_gradients(num_devices, texts_per_example, symmetric):
    embeddings, ids = random_embeddings(texts_per_example)
    options = {"texts_per_example": texts_per_example, "symmetric": symmetric}
    gathered, *rings = (loss_and_gradients(exchange, num_devices, embeddings, ids, **options) for exchange in EXCHANGES)
    rings.append(loss_and_gradients("ring", num_devices, embeddings, ids, bound=20.2, **options))
    for ring in rings:
        np.testing.assert_allclose(ring[0], gathered[0], rtol=1e-5)
        assert_trees_close(ring[1], gathered[1], tolerance=1e-5)
        assert_trees_close(ring[2], gathered[2], tolerance=1e-5)
    distinct = np.arange(ids.size, dtype=np.uint32).reshape(ids.shape) + 1
    unmasked = loss_and_gradients("ring", num_devices, embeddings, distinct, **options)
    assert abs(unmasked[0] - gathered[0]) > 1e-2, "the duplicates are left out, and it shows"


def test_any_order_of_the_ring():
    """The keys travel along it, and nothing else changes."""
    embeddings, ids = random_embeddings(2)
    options = {"texts_per_example": 2, "symmetric": True}
    expected = loss_and_gradients("ring", 4, embeddings, ids, **options)
    in_order = functools.partial(loss_and_gradients, "ring", 4, ring=(0, 2, 1, 3), **options)
    actual = in_order(embeddings, ids)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    assert_trees_close(actual[1], expected[1], tolerance=1e-5)
    hops = re.findall(r"perm=\(\(0, (\d)\)", str(jax.make_jaxpr(in_order)(embeddings, ids)))
    assert hops and set(hops) == {"2"}


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_one_way_strip_by_strip(num_devices, monkeypatch):
    """Triplets in strips of four rows: the loss, its gradients and the metrics of plain jnp on one device."""
    compiled_loss.cache_clear()
    monkeypatch.setattr(xla, "CPU_TILE_BYTES", 4 * 4 * 16 * 4)
    monkeypatch.setattr(xla, "CPU_STRIP_ROWS", 4)
    embeddings, ids = random_embeddings(3)
    options = {"texts_per_example": 3, "symmetric": False, "bound": 20.2}
    strips = loss_and_gradients("all_gather", num_devices, embeddings, ids, **options)
    expected = loss_and_gradients("all_gather", 1, embeddings, ids, implementation="reference", **options)
    np.testing.assert_allclose(strips[0], expected[0], rtol=1e-5)
    assert_trees_close(strips[1], expected[1], tolerance=1e-5)
    assert_trees_close(strips[2], expected[2], tolerance=1e-5)
    compiled_loss.cache_clear()


@pytest.mark.parametrize("exchange, symmetric, expected", [
    ("all_gather", False, 6), ("all_gather", True, 8), ("ring", False, 8)])
def test_arithmetic_of_a_device(exchange, symmetric, expected):
    """In units of u = b N D: loss and gradient of 2048 triplets of width 16 on each of two devices."""
    embeddings = jax.ShapeDtypeStruct((2, 3 * 2048, 16), jnp.float32)
    ids = jax.ShapeDtypeStruct((2, 3 * 2048, 2), jnp.uint32)
    jaxpr = jax.make_jaxpr(functools.partial(
        loss_and_gradients, exchange, 2, texts_per_example=3, symmetric=symmetric, bound=20.2))(embeddings, ids)
    assert matrix_flops(jaxpr) == expected * 2048 * 8192 * 16


@pytest.mark.parametrize("texts_per_example", [2, 3])
def test_same_training_steps(texts_per_example):
    """Parameters after three steps of plain gradient descent: Adam would divide small gradients by their rounding."""
    layout, optimizer = make_layout(), optax.sgd(0.01)
    batch = feed(pack(*random_texts(0, texts_per_example)), layout)
    results = []
    for exchange in EXCHANGES:
        objective = make_objective(texts_per_example == 2, exchange)
        _, _, train_step = make_step(
            layout, objective, texts_per_example, dropout=False, model=ONE_LAYER, optimizer=optimizer)
        state = first_state(layout, objective, optimizer, ONE_LAYER)
        losses = []
        for _ in range(3):
            state, metrics = train_step(state, batch)
            losses.append(float(metrics["loss"]))
        results.append((losses, jax.device_get(state.parameters)))
    for losses, parameters in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], rtol=1e-5)
        assert_trees_close(parameters, results[0][1])


def test_unknown_exchange_is_refused():
    with pytest.raises(ValueError, match="'star' is none of all_gather, ring"):
        loss_and_gradients("star", 1, *random_embeddings(2), texts_per_example=2, symmetric=True)
