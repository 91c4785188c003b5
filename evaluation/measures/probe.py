"""Multinomial logistic regression on features of text pairs, over all devices of all processes.

    minimise over W, b:  1/2 ||W||^2 + C sum_i w_i CE(f(u_i, v_i) W + b, label_i)

is scikit-learn's objective; the intercepts b are not penalised. Several subsets of the pairs (columns of weights w_i, 0
or 1) are fitted as one sum, which has the same minimum, so that they share the work on the features. The features are
computed block by block when they are used: the devices hold the pairs' embeddings and never all the features.

Legend: n = pairs, D = embedding width, F = features of a pair.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding

from sharding.layout import DEVICES, SPLIT, WHOLE, host_copy, make_mesh, replicate

BLOCK_ROWS = 1024  # most pairs whose features exist at once on a device
TOLERANCE = 1e-6  # of the largest element of the gradient; the objective is a mean and has a curvature of about 1
MAX_ITERATIONS = 1000
MEMORY = 20  # steps from which L-BFGS estimates the curvature

Features = Callable[[jax.Array, jax.Array], list[jax.Array]]  # u, v [block, D] -> arrays that make [block, F]


class Pairs(NamedTuple):
    first: np.ndarray  # [n, D] float32
    second: np.ndarray  # [n, D] float32
    labels: np.ndarray  # [n] int, 0 .. classes - 1


class Probe(NamedTuple):
    weights: np.ndarray  # [F, subsets, classes] float32
    intercepts: np.ndarray  # [subsets, classes] float32


class Rows(NamedTuple):
    """Pairs on the devices, split by rows and padded to equal blocks on every device."""

    first: jax.Array  # [rows, D] float32
    second: jax.Array  # [rows, D] float32
    labels: jax.Array  # [rows] int32
    subsets: jax.Array  # [rows, subsets] float32, 0 in the padding


def fit(
    pairs: Pairs, subsets: np.ndarray, strengths: Sequence[float], features: Features, num_classes: int,
    mesh: Mesh | None = None,
) -> list[Probe]:
    """A probe of each C in `strengths`, each fit started from the one before.

    Args:
        pairs: all of them in every process.
        subsets: [n, subsets] bool, the pairs that each of the separate fits learns from.
        features: a function of a module, as it is compiled once.
        mesh: default: all devices.

    Raises ValueError if a class has no pair in a subset (its intercept would have no minimum), and if a fit is not
    finite; logs a warning if one stops short of the tolerance.
    """
    members = np.eye(num_classes, dtype=np.int64)[pairs.labels].T @ subsets.astype(np.int64)  # [classes, subsets]
    if not members.all():
        label, subset = np.argwhere(members == 0)[0]
        raise ValueError(f"none of the {subsets[:, subset].sum()} pairs that a probe learns from has class {label}")
    mesh = mesh or make_mesh()
    rows = _shard(pairs, subsets, mesh)
    num_features = sum(values.shape[1] for values in features(pairs.first[:1], pairs.second[:1]))
    shape = (subsets.shape[1], num_classes)
    probe = replicate(Probe(np.zeros((num_features, *shape), np.float32), np.zeros(shape, np.float32)), mesh)
    probes = []
    for strength in strengths:
        probe, iterations, gradient = _minimise(probe, rows, np.float32(strength), features=features, mesh=mesh)
        iterations, gradient = host_copy((iterations, gradient))
        if not np.isfinite(gradient):
            raise ValueError(f"the probe with C={strength:g} is not finite after {iterations} iterations")
        if gradient > TOLERANCE:
            logging.warning("the probe with C=%g stopped after %d iterations at a gradient of %.1e, tolerance %.1e",
                            strength, iterations, gradient, TOLERANCE)
        probes.append(host_copy(probe))
    return probes


def predict(probe: Probe, pairs: Pairs, features: Features) -> np.ndarray:
    """[n, subsets] int: each fit's class of each pair, the one with the largest logit. On the host."""
    classes = np.empty((len(pairs.labels), len(probe.intercepts)), np.int64)
    flat_weights = probe.weights.reshape(len(probe.weights), -1)
    for start in range(0, len(classes), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        values = np.concatenate(features(pairs.first[block], pairs.second[block]), axis=1)
        logits = (values @ flat_weights).reshape(-1, *probe.intercepts.shape) + probe.intercepts
        classes[block] = logits.argmax(axis=-1)
    return classes


def _shard(pairs: Pairs, subsets: np.ndarray, mesh: Mesh) -> Rows:
    """Each process puts the rows of its own devices there, padded so that every device has equal blocks."""
    blocks = -(-len(pairs.labels) // (mesh.size * BLOCK_ROWS)) * mesh.size
    total = -(-len(pairs.labels) // blocks) * blocks
    sharding = NamedSharding(mesh, SPLIT)

    def put(array: np.ndarray) -> jax.Array:
        def share(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            padded = np.zeros((stop - start, *array.shape[1:]), array.dtype)
            part = array[start:stop]
            padded[:len(part)] = part
            return padded

        return jax.make_array_from_callback((total, *array.shape[1:]), sharding, share)

    labels, subsets = pairs.labels.astype(np.int32), subsets.astype(np.float32)
    return Rows(put(pairs.first), put(pairs.second), put(labels), put(subsets))


@functools.partial(jax.jit, static_argnames=("features", "mesh"))
def _minimise(
    probe: Probe, rows: Rows, strength: jax.Array, *, features: Features, mesh: Mesh
) -> tuple[Probe, jax.Array, jax.Array]:
    """(probe, iterations, largest element of the gradient) by L-BFGS, started from `probe`.

    The objective of a subset is divided by C sum w. Its variables are V = W * scale and e = b + mean W: if
    embeddings are not of unit length, the scales of W and b differ so much that float32 would miss the minimum.
    """
    with jax.default_matmul_precision("highest"):
        sums, squares, counts = _sum_over_rows(_block_moments, features, mesh)((), rows)  # [F], [F], [subsets]
        mean = sums / counts.sum()
        variance = jnp.maximum(squares / counts.sum() - jnp.square(mean), 0.0)
        rows = rows._replace(subsets=rows.subsets / counts[None])
        ridge = 1 / (strength * counts)
        scale = jnp.sqrt(variance[:, None] / 4 + ridge[None])[..., None]  # [F, subsets, 1], about sqrt(curvature)
        cross_entropy = _cross_entropy(mean, rows, features, mesh)

        def objective(scaled: Probe) -> jax.Array:
            weights = scaled.weights / scale
            return jnp.square(weights).sum((0, 2)) @ ridge / 2 + cross_entropy(Probe(weights, scaled.intercepts))

        value_and_gradient = optax.value_and_grad_from_state(objective)
        optimizer = optax.lbfgs(memory_size=MEMORY)

        def step(carry):
            scaled, state = carry
            value, gradient = value_and_gradient(scaled, state=state)
            updates, state = optimizer.update(
                gradient, state, scaled, value=value, grad=gradient, value_fn=objective)
            return optax.apply_updates(scaled, updates), state

        def unfinished(carry):
            iterations, gradient = _progress(carry[1])
            return (iterations == 0) | ((iterations < MAX_ITERATIONS) & (gradient > TOLERANCE))

        shift = jnp.einsum("f,fkc->kc", mean, probe.weights)
        start = Probe(probe.weights * scale, probe.intercepts + shift)
        scaled, state = jax.lax.while_loop(unfinished, step, (start, optimizer.init(start)))
        weights = scaled.weights / scale
        shift = jnp.einsum("f,fkc->kc", mean, weights)
        return Probe(weights, scaled.intercepts - shift), *_progress(state)


def _progress(state: optax.OptState) -> tuple[jax.Array, jax.Array]:
    """(iterations, largest element of the gradient after them) of L-BFGS."""
    gradient = optax.tree_utils.tree_get(state, "grad")
    largest = jnp.stack([jnp.abs(leaf).max() for leaf in gradient]).max()
    return optax.tree_utils.tree_get(state, "count"), largest


def _cross_entropy(mean: jax.Array, rows: Rows, features: Features, mesh: Mesh) -> Callable[[Probe], jax.Array]:
    """The cross entropy of all rows, weighted by rows.subsets, as a function of the probe on f(u, v) - mean.

    One pass over the rows gives it and its gradient; reverse-mode AD would keep the features or compute them again.
    """
    sums = _sum_over_rows(_block_cross_entropy, features, mesh)

    @jax.custom_vjp
    def cross_entropy(probe: Probe) -> jax.Array:
        return sums((probe, mean), rows)[0]

    def backward(gradient: Probe, cotangent: jax.Array) -> tuple[Probe]:
        return (jax.tree.map(lambda leaf: cotangent * leaf, gradient),)

    cross_entropy.defvjp(lambda probe: sums((probe, mean), rows), backward)
    return cross_entropy


def _block_cross_entropy(argument: tuple[Probe, jax.Array], block: Rows, values: jax.Array) -> tuple[jax.Array, Probe]:
    """(loss, gradient) of one block of rows, whose features are values [block, F]."""
    probe, mean = argument
    values = values - mean[None]
    logits = jnp.einsum("mf,fkc->mkc", values, probe.weights) + probe.intercepts[None]
    log_probabilities = jax.nn.log_softmax(logits)
    targets = jax.nn.one_hot(block.labels, logits.shape[-1])[:, None]  # [block, 1, classes]
    weights = block.subsets[..., None]  # [block, subsets, 1]
    errors = weights * (jnp.exp(log_probabilities) - targets)
    loss = -(weights * targets * log_probabilities).sum()
    return loss, Probe(jnp.einsum("mf,mkc->fkc", values, errors), errors.sum(0))


def _block_moments(_: tuple, block: Rows, values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of the features and of their squares [F], weighted by how many subsets hold a row; sizes of the subsets."""
    times = block.subsets.sum(1)
    return times @ values, times @ jnp.square(values), block.subsets.sum(0)


def _sum_over_rows(function: Callable, features: Features, mesh: Mesh) -> Callable:
    """(argument, rows) -> the sum over all devices' blocks of function(argument, block, its features [block, F])."""

    def local(argument, rows):
        blocks = -(-len(rows.labels) // BLOCK_ROWS)
        rows = jax.tree.map(lambda array: array.reshape(blocks, -1, *array.shape[1:]), rows)

        def of_block(block):
            return function(argument, block, jnp.concatenate(features(block.first, block.second), axis=1))

        def add(sums, block):
            return jax.tree.map(jnp.add, sums, of_block(block)), None

        shapes = jax.eval_shape(of_block, jax.tree.map(lambda array: array[0], rows))
        sums, _ = jax.lax.scan(add, jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes), rows)
        return jax.lax.psum(sums, DEVICES)

    return jax.shard_map(  # check_vma=False: the sum over devices is the same on each
        local, mesh=mesh, in_specs=(WHOLE, SPLIT), out_specs=WHOLE,
        check_vma=False,
    )
