"""similarity_logsumexp over the keys of all devices without ever gathering them: they go round a ring.

A device computes the b x W n block of scores of its own rows, n keys at a time, with the forward and backward of the
implementation that runs. What belongs to a key travels with it: the labels and the sums over the rows seen so far; in
the backward pass its log-sum-exp, the cotangent of that and, in float32, its gradient. All of it is at home again, over
the rows of all devices, when the round is over. A device holds the keys of two devices, whatever their number.

Arithmetic is that of the gathered form. A device sends about W n D elements in the operands' dtype in each pass, and as
many in float32 in the backward pass. Where XLA sends them asynchronously, the work on a block hides the hop to the next
if it is longer: with F FLOP/s and W bytes/s to each neighbour, bfloat16 operands and the Pallas kernel from b = F / W
on in the forward pass (2 b n D FLOPs, 2 n D bytes) and from b = 3 F / (4 W) on in the backward pass (8 b n D FLOPs,
6 n D bytes); half of that with both directions. By the data sheet of a TPU v5e F / W is about 4400. In programs that
jax 0.10 compiles for v5e the hops are asynchronous on 8 to 256 chips, where the axis is a ring of neighbouring chips
(sharding/layout.py makes it one); from 32 chips on, a single hop that goes farther makes all of them blocking.

Legend: W devices, b query rows and n keys per device, D embedding width, m keys of a travelling block.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.contrastive import api, tile
from kernels.contrastive.labels import PairLabels, pair_labels
from kernels.contrastive.tile import RowStatistics
from sharding.ring import ring_scan

ELSEWHERE = -1
"""Column of a row's own positive in a block that does not hold it: no key has it."""


class _Options(NamedTuple):
    block: api._Options
    axis_name: str
    bidirectional: bool


class _Block(NamedTuple):
    """The keys of a device, or half of them, and what belongs to them."""

    keys: jax.Array  # [m, D]
    labels: tuple[jax.Array, ...] | None  # [m] int32, [m] int32: the columns of PairLabels.keys
    values: tuple[jax.Array, ...] | None = None  # of [m]: tile.gradient_values


def ring_similarity_logsumexp(
    queries: jax.Array,  # [b, D] float32 or bfloat16, this device's
    keys: jax.Array,  # [n, D], this device's
    scale: jax.Array | float,  # []
    *,
    axis_name: str,
    bidirectional: bool = False,
    query_labels: jax.Array | None = None,  # [b, 2] int32: query text, positive text
    key_labels: jax.Array | None = None,  # [n, 2] int32: key text, anchor text
    positives: jax.Array | None = None,  # [b] int32: each row's own positive among this device's keys
    columns: bool = True,
    statistics: bool = False,
    bound: float | None = None,
    implementation: api.Implementation = "auto",
    row_block: int | None = None,
    column_block: int | None = None,
) -> tuple[jax.Array, jax.Array | None] | tuple[jax.Array, jax.Array | None, RowStatistics]:
    """row_lse_i = log sum_j exp(s_ij) over the keys j of all devices, column_lse_j = log sum_i exp(s_ij) over all rows.

    s_ij = scale <q_i, k_j>, and api.similarity_logsumexp says which pairs are left out. Labels are comparable over all
    devices. Differentiable as the gathered form is, inside shard_map with check_vma=False: the gradients of queries and
    keys are complete, that of the scale is this device's share, of its own rows.

    Args:
      bidirectional: half of the keys travel each way, so that both directions of the links are used.
      columns, statistics, bound, implementation, row_block, column_block: as in api.similarity_logsumexp; "reference"
        has no ring form.

    Returns:
      row_lse [b] and column_lse [n] (or None), float32, and RowStatistics [b] if asked for: of this device's own rows
      and keys, over all devices.
    """
    api._check_arguments(queries, keys, scale, query_labels, key_labels, positives, bound)
    chosen = api.choose("ring_similarity_logsumexp", implementation, queries)
    if chosen == "reference":
        raise ValueError("implementation='reference' has no ring form: use 'auto', 'xla', 'tpu' or 'hopper', or gather "
                         "the keys")
    labels = pair_labels(query_labels, key_labels, positives, queries.shape[0])
    num_devices = jax.lax.axis_size(axis_name)
    shift = tile.constant_shift(bound, num_devices * queries.shape[0], num_devices * keys.shape[0])
    block_options = api._Options(chosen, columns, statistics, shift, row_block, column_block)
    options = _Options(block_options, axis_name, bidirectional)
    with jax.named_scope("ring_similarity_logsumexp"):
        results = _ring_similarity_logsumexp(options, queries, keys, jnp.asarray(scale, jnp.float32), labels)
    return results if statistics else results[:2]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_similarity_logsumexp(options: _Options, queries, keys, scale, labels: PairLabels | None):
    forward, _ = api._functions(options.block)
    columns, statistics = options.block.columns, options.block.statistics

    def meet(row_results, block: _Block, labels, column_sums):
        row_lse, column_lse, of_block = forward(
            queries, block.keys, scale, labels, columns=columns, statistics=statistics)
        row_sums, so_far = row_results
        if statistics:
            so_far = RowStatistics(jnp.maximum(so_far.hardest_negative, of_block.hardest_negative),
                                   so_far.num_left_out + of_block.num_left_out)
        return (_add(row_sums, row_lse), so_far), _add(column_sums, column_lse) if columns else None

    no_results = tile.no_sums(queries.shape[:1], None), tile.no_statistics(queries.shape[:1]) if statistics else None
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
    unit = jax.lax.pmax(unit, options.axis_name)  # one for the values that travel
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

    state, totals = ring_scan(step, state, split(block), split(totals), options.axis_name)
    return state, jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *totals)


def _columns(labels: PairLabels | None):
    return None if labels is None else (labels.keys[:, 0], labels.keys[:, 1])


def _add(sums: tile.Sums, lse: jax.Array) -> tile.Sums:
    """Sums, and not their logarithm: that, of 20 or so, would lose 1e-6 at every addition."""
    return tile.merge(sums, tile.Sums(lse, jnp.ones_like(lse)))
