"""similarity_logsumexp over the keys of all devices without gathering them: the keys travel round a ring of devices.

A device computes the b x W n block of scores of its own rows, n keys at a time, with the forward and backward of the
chosen implementation. Everything that belongs to a key travels with it: its labels and its sums over the rows seen so
far; in the backward pass also its log-sum-exp, the cotangent of that and its gradient in float32. After one round each
key is back on its own device, with sums over the rows of all devices. A device holds the keys of only two devices at a
time, however many there are.

The arithmetic is that of the gathered form. A device sends about W n D elements in the operands' dtype in each pass,
and as many in float32 in the backward pass. If XLA sends them asynchronously, the work on a block hides the hop of the
next one, provided that it takes longer. With bfloat16 operands and the Pallas kernel it does from b = (FLOP/s) /
(bytes/s to each neighbour) on in the forward pass (2 b n D FLOPs, 2 n D bytes), and from 3/4 of that on in the backward
pass (8 b n D FLOPs, 6 n D bytes); with both directions half as many rows are enough. By the data sheet of a TPU v5e the
quotient is about 4400. In programs that jax 0.10 compiles for v5e, the hops are asynchronous on 8 to 256 chips if they
go from neighbour to neighbour (ring_order in sharding/layout.py). From 32 chips on, a single longer hop makes all hops
blocking.

Legend: W devices, b query rows and n keys per device, D embedding width.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.contrastive import api, tile
from kernels.contrastive.labels import PairLabels, pair_labels
from kernels.contrastive.tile import RowStatistics
from sharding.collectives import AxisName
from sharding.ring import ring_scan

ELSEWHERE = -1
"""Stands for the column of a row's own positive in a block that does not hold it: no key has this column."""


class _Options(NamedTuple):
    block: api._Options
    axis_name: AxisName
    bidirectional: bool
    order: tuple[int, ...] | None


class _Block(NamedTuple):
    """The keys of a device, or half of them, with everything that travels with them."""

    keys: jax.Array  # [block, D]
    labels: tuple[jax.Array, ...] | None  # [block] int32, each: the columns of PairLabels.keys
    values: tuple[jax.Array, ...] | None = None  # of [block]: tile.gradient_values


def ring_similarity_logsumexp(
    queries: jax.Array,  # [b, D] float32 or bfloat16, this device's
    keys: jax.Array,  # [n, D], this device's
    scale: jax.Array | float,  # []
    *,
    axis_name: AxisName,
    bidirectional: bool = False,
    order: tuple[int, ...] | None = None,
    query_labels: jax.Array | None = None,  # [b, 2] int32: query text, positive text
    key_labels: jax.Array | None = None,  # [n, 2] int32: key text, anchor text
    positives: jax.Array | None = None,  # [b] int32: each row's own positive among this device's keys
    columns: bool = True,
    bound: float | None = None,
    implementation: api.Implementation = "auto",
    row_block: int | None = None,
    column_block: int | None = None,
) -> tuple[jax.Array, jax.Array | None, RowStatistics]:
    """row_lse_i = log sum_j exp(s_ij) over the keys j of all devices, column_lse_j = log sum_i exp(s_ij) over all rows.

    s_ij = scale <q_i, k_j>; api.similarity_logsumexp says which pairs are left out. Labels must be comparable over all
    devices. Differentiable like the gathered form, inside shard_map with check_vma=False: the gradients of queries and
    keys are complete, that of the scale is the share of this device's own rows.

    Args:
      bidirectional: half of the keys travel each way, so that both directions of the links are used.
      order: the devices along the ring; None: as they are numbered.
      columns, bound, implementation, row_block, column_block: as in api.similarity_logsumexp; "reference" has no ring
        form.

    Returns:
      row_lse [b] and column_lse [n] (or None), float32, and RowStatistics [b]: of this device's own rows and keys, over
      all devices.
    """
    api._check_arguments(queries, keys, scale, query_labels, key_labels, positives, bound)
    chosen = api.choose("ring_similarity_logsumexp", implementation, queries)
    if chosen == "reference":
        raise ValueError("implementation='reference' has no ring form: use 'auto', 'xla', 'tpu' or 'hopper', or gather "
                         "the keys")
    labels = pair_labels(query_labels, key_labels, positives, queries.shape[0])
    num_devices = jax.lax.axis_size(axis_name)
    shift = tile.constant_shift(bound, num_devices * queries.shape[0], num_devices * keys.shape[0])
    block_options = api._Options(chosen, columns, shift, row_block, column_block)
    options = _Options(block_options, axis_name, bidirectional, order)
    with jax.named_scope("ring_similarity_logsumexp"):
        return _ring_similarity_logsumexp(options, queries, keys, jnp.asarray(scale, jnp.float32), labels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_similarity_logsumexp(options: _Options, queries, keys, scale, labels: PairLabels | None):
    forward, _ = api._functions(options.block)
    columns = options.block.columns

    def meet(row_results, block: _Block, labels, column_sums):
        row_lse, column_lse, of_block = forward(queries, block.keys, scale, labels, columns=columns)
        row_sums, so_far = row_results
        statistics = RowStatistics(jnp.maximum(so_far.hardest_negative, of_block.hardest_negative),
                                   so_far.num_left_out + of_block.num_left_out)
        return (_add(row_sums, row_lse), statistics), _add(column_sums, column_lse) if columns else None

    no_results = tile.no_sums(queries.shape[:1], None), tile.no_statistics(queries.shape[:1])
    no_column_sums = tile.no_sums(keys.shape[:1], None) if columns else None
    (row_sums, row_statistics), column_sums = _meet_all(
        options, labels, meet, no_results, _Block(keys, _columns(labels)), no_column_sums)
    column_lse = tile.logsumexp(column_sums, None) if columns else None
    return tile.logsumexp(row_sums, None), column_lse, row_statistics


def _forward(options: _Options, queries, keys, scale, labels):
    results = _ring_similarity_logsumexp(options, queries, keys, scale, labels)
    return results, (queries, keys, scale, labels, *results[:2])


def _backward(options: _Options, residuals, cotangents):
    queries, keys, scale, labels, *lses = residuals
    sides = 2 if options.block.columns else 1
    unit = tile.cotangent_unit(lses[:sides], cotangents[:sides])
    unit = jax.lax.pmax(unit, options.axis_name)  # the same on all devices, for the values that travel
    row_values, *column_values = [
        tile.gradient_values(lse, cotangent, unit, options.block.shift)
        for lse, cotangent in zip(lses[:sides], cotangents[:sides])
    ]
    _, backward = api._functions(options.block)

    def meet(own_gradients, block: _Block, labels, key_gradient):
        query_part, key_part, scale_part = backward(
            queries, block.keys, scale, labels, unit, row_values, block.values, key_gradient_dtype=keys.dtype)
        query_gradient, scale_gradient = own_gradients
        return (query_gradient + query_part, scale_gradient + scale_part), key_gradient + key_part

    block = _Block(keys, _columns(labels), column_values[0] if column_values else None)
    no_gradients = jnp.zeros(queries.shape, jnp.float32), jnp.zeros((), jnp.float32)
    (query_gradient, scale_gradient), key_gradient = _meet_all(
        options, labels, meet, no_gradients, block, jnp.zeros(keys.shape, jnp.float32))
    return query_gradient.astype(queries.dtype), key_gradient.astype(keys.dtype), scale_gradient, None


_ring_similarity_logsumexp.defvjp(_forward, _backward)


def _meet_all(options: _Options, labels: PairLabels | None, meet, state, block: _Block, totals):
    """state, totals = meet(state, block, labels, totals) with the block of every device, whole or in two halves."""
    num_keys = block.keys.shape[0]
    middle = -(-num_keys // 2) if options.bidirectional else num_keys
    parts = [part for part in (slice(0, middle), slice(middle, num_keys)) if part.start < part.stop]

    def split(tree):
        return [jax.tree.map(operator.itemgetter(part), tree) for part in parts]

    def step(k, hop, state, block: _Block, totals):
        if labels is None:
            return meet(state, block, None, totals)
        own_positive = jnp.where(hop == 0, labels.rows[:, 2] - parts[k].start, ELSEWHERE)
        rows = jnp.concatenate([labels.rows[:, :2], own_positive[:, None]], axis=1)
        return meet(state, block, PairLabels(rows, jnp.stack(block.labels, axis=1)), totals)

    state, totals = ring_scan(step, state, split(block), split(totals), options.axis_name, options.order)
    return state, jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *totals)


def _columns(labels: PairLabels | None):
    return None if labels is None else (labels.keys[:, 0], labels.keys[:, 1])


def _add(sums: tile.Sums, lse: jax.Array) -> tile.Sums:
    """Adds sums, not their logarithms: a logarithm of about 20 would lose 1e-6 at every addition."""
    return tile.merge(sums, tile.Sums(lse, jnp.ones_like(lse)))
