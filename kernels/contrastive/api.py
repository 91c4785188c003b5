"""similarity_logsumexp and summed_logsumexp, the primitives of every contrastive loss, and their implementations.

AD composes losses from them. A symmetric loss takes row_lse and column_lse of similarity_logsumexp from a single
product; over devices, sharding.collectives.psum_logsumexp combines the columns. A one-way loss needs only the sum of
the rows, summed_logsumexp.

With u = b N D the product of queries and keys costs 2u FLOPs. Loss and gradient, one-way or symmetric, cost at least 8u
if the backward recomputes the scores (forward 2u, backward 6u), and 6u if the scores are kept: all of them or, for a
sum of the rows, those of a strip of r rows at a time, in 2 r N bytes. The implementations execute:

             similarity_logsumexp                     summed_logsumexp
  reference  6u, and keeps [b, N]                     the same
  xla        8u, 6u if the whole block is a tile      6u; 8u if a strip is too large (xla.strip_blocks)
  tpu        8u, 10u if the float32 gradient of       the same
             the queries does not fit into VMEM:
             large batches on v3 and v4
  hopper     8u                                       the same

Legend: b query rows, N keys, D embedding width; W devices, n keys of one device.
"""

import functools
import importlib
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from absl import logging

from kernels.contrastive import reference, tile, xla
from kernels.contrastive.labels import PairLabels, pair_labels
from kernels.contrastive.tile import RowStatistics
from kernels.implementation import choose_implementation
from sharding.collectives import AxisName, all_gather_with_gradient, scatter_sum

Implementation = Literal["auto", "reference", "xla", "tpu", "tpu_interpret", "hopper", "hopper_interpret"]


class _Options(NamedTuple):
    implementation: str
    columns: bool
    shift: float | None
    row_block: int | None
    column_block: int | None
    axis_name: AxisName | None = None


class _SumOptions(NamedTuple):
    shift: float | None
    blocks: tuple[int, int]
    transposed: bool  # xla.adds_transposed
    axis_name: AxisName | None
    num_keys: int
    dtype: jnp.dtype  # of the operands


def similarity_logsumexp(
    queries: jax.Array,  # [b, D] float32 or bfloat16
    keys: jax.Array,  # [N, D], the queries' dtype
    scale: jax.Array | float,  # []
    *,
    query_labels: jax.Array | None = None,  # [b, 2] int32: query text, positive text
    key_labels: jax.Array | None = None,  # [N, 2] int32: key text, anchor text
    positives: jax.Array | None = None,  # [b] int32: column of each row's own positive
    columns: bool = True,
    bound: float | None = None,
    axis_name: AxisName | None = None,
    implementation: Implementation = "auto",
    row_block: int | None = None,
    column_block: int | None = None,
) -> tuple[jax.Array, jax.Array | None, RowStatistics]:
    """row_lse_i = log sum_j exp(s_ij) and column_lse_j = log sum_i exp(s_ij) with s_ij = scale <q_i, k_j>.

    Both sums leave out false negatives. Two labels are equal if their texts are (labels.text_labels). Key j is a false
    negative of row i if its text is i's positive or i's query, or if its anchor is i's query. A row's own positive is
    always kept. The text label -1 is an empty slot, which is left out everywhere (anchor label -1: no anchor). With
    key_labels but without query_labels and positives, only the empty keys are left out.

    Differentiable in queries, keys and scale; it saves only its operands and the two results. A row or column without a
    candidate has the value -inf and a gradient of zero. Scores, sums and gradients accumulate in float32.

    Args:
      columns: False computes no column part: column_lse is None.
      bound: the caller's promise that |s_ij| <= bound, as with unit-norm embeddings and bound = scale. If
        2 bound + ln max(b, N) < 156, a constant then replaces the running maximum, which saves exponentials
        (tile.constant_shift). If the promise is broken, results are infinite.
      axis_name: inside shard_map (check_vma=False), keys [n, D] are this device's. They are gathered, N = W n in device
        order; labels, positives and column_lse refer to all N. The gradient of the keys is summed over the devices in
        float32 and only then rounded to their dtype. (AD of a gathered array would round before the sum.)
      implementation: "auto" is "tpu" on a TPU and "xla" elsewhere; a named one raises ValueError if it cannot run.
        "hopper" is for bfloat16 on Hopper GPUs; no GPU has run it yet, so "auto" does not choose it.
      row_block, column_block: tile sizes; None lets the implementation choose.

    Returns:
      row_lse [b] and column_lse [N] (or None), float32, and RowStatistics, from the same product; no gradient flows
      into these. Over devices column_lse covers the local rows only.
    """
    all_keys = keys if axis_name is None else all_gather_with_gradient(keys, axis_name)
    _check_arguments(queries, all_keys, scale, query_labels, key_labels, positives, bound)
    chosen = choose("similarity_logsumexp", implementation, queries)
    labels = pair_labels(query_labels, key_labels, positives, queries.shape[0])
    with jax.named_scope("similarity_logsumexp"):
        if chosen == "reference":
            return reference.similarity_logsumexp(queries, all_keys, scale, labels, columns=columns)
        shift = tile.constant_shift(bound, queries.shape[0], all_keys.shape[0])
        options = _Options(chosen, columns, shift, row_block, column_block, axis_name)
        all_keys = jax.lax.stop_gradient(all_keys)
        return _similarity_logsumexp(options, queries, keys, all_keys, jnp.asarray(scale, jnp.float32), labels)


def summed_logsumexp(
    queries: jax.Array,  # [b, D] float32 or bfloat16
    keys: jax.Array,  # [N, D], the queries' dtype
    scale: jax.Array | float,  # []
    *,
    query_labels: jax.Array | None = None,  # [b, 2] int32: query text, positive text
    key_labels: jax.Array | None = None,  # [N, 2] int32: key text, anchor text
    positives: jax.Array | None = None,  # [b] int32: column of each row's own positive
    bound: float | None = None,
    axis_name: AxisName | None = None,
    implementation: Implementation = "auto",
    row_block: int | None = None,
    column_block: int | None = None,
) -> tuple[jax.Array, RowStatistics]:
    """sum_i row_lse_i of similarity_logsumexp, float32 [], and RowStatistics.

    All rows share the sum's cotangent, so their gradients are known, up to this factor, as soon as the sum is. "xla"
    computes both together, one strip of rows after the other, 6u in all, and saves only the gradients. Without a
    gradient the sum costs 2u. If a strip is too large (xla.strip_blocks), and with the other implementations, it is the
    sum over similarity_logsumexp, 8u. The arguments are those of similarity_logsumexp, except:

    Args:
      row_block, column_block: rows of a strip, columns of a tile; None lets the implementation choose.
    """
    labels = {"query_labels": query_labels, "key_labels": key_labels, "positives": positives}
    chosen = choose("summed_logsumexp", implementation, queries)
    num_keys = keys.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    strip = xla.strip_blocks(queries.shape[0], num_keys, queries.dtype, row_block) if chosen == "xla" else None
    if strip is None:
        if chosen == "xla":
            _log_recomputation(queries.shape[0], num_keys)
        row_lse, _, statistics = similarity_logsumexp(
            queries, keys, scale, columns=False, bound=bound, axis_name=axis_name, implementation=chosen,
            row_block=row_block, column_block=column_block, **labels)
        return jnp.sum(row_lse), statistics
    all_keys = keys if axis_name is None else all_gather_with_gradient(keys, axis_name)
    _check_arguments(queries, all_keys, scale, **labels, bound=bound)
    options = _SumOptions(
        tile.constant_shift(bound, queries.shape[0], num_keys), (strip[0], column_block or strip[1]),
        xla.adds_transposed(queries.dtype), axis_name, num_keys, queries.dtype)
    with jax.named_scope("summed_logsumexp"):
        return _summed_logsumexp(
            options, queries, keys, jax.lax.stop_gradient(all_keys), jnp.asarray(scale, jnp.float32),
            pair_labels(**labels, num_rows=queries.shape[0]))


@functools.cache
def _log_recomputation(num_rows: int, num_keys: int) -> None:
    logging.info("summed_logsumexp: no strip of %d x %d scores fits: the gradient recomputes the scores",
                 num_rows, num_keys)


def choose(kernel: str, implementation: Implementation, queries: jax.Array) -> str:
    """kernels.implementation.choose_implementation among those of this kernel."""

    def unsupported(name: str) -> str | None:
        return _module("hopper").refusal(queries.shape[1], queries.dtype) if name == "hopper" else None

    return choose_implementation(kernel, implementation, get_args(Implementation), queries.dtype, unsupported)


def _module(name: str):
    """The module of an implementation, imported only if it may run: Mosaic takes as long as everything else."""
    return importlib.import_module(f"kernels.contrastive.{name}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _similarity_logsumexp(options: _Options, queries, keys, all_keys, scale, labels: PairLabels | None):
    """Computed from all_keys; the gradient goes to this device's keys."""
    forward, _ = _functions(options)
    return forward(queries, all_keys, scale, labels, columns=options.columns)


def _forward(options: _Options, queries, keys, all_keys, scale, labels):
    results = _similarity_logsumexp(options, queries, keys, all_keys, scale, labels)
    return results, (queries, all_keys, scale, labels, *results[:2])


def _backward(options: _Options, residuals, cotangents):
    queries, all_keys, scale, labels, *lses = residuals
    sides = 2 if options.columns else 1
    unit = tile.cotangent_unit(lses[:sides], cotangents[:sides])
    row_values, *column_values = [
        tile.gradient_values(lse, cotangent, unit, options.shift)
        for lse, cotangent in zip(lses[:sides], cotangents[:sides])
    ]
    _, backward = _functions(options)
    key_dtype = queries.dtype if options.axis_name is None else jnp.promote_types(queries.dtype, jnp.float32)
    query_gradient, key_gradient, scale_gradient = backward(
        queries, all_keys, scale, labels, unit, row_values, column_values[0] if column_values else None,
        key_gradient_dtype=key_dtype)
    if options.axis_name is not None:
        key_gradient = scatter_sum(key_gradient, options.axis_name)
    return query_gradient, key_gradient.astype(queries.dtype), None, scale_gradient, None


_similarity_logsumexp.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_logsumexp(options: _SumOptions, queries, keys, all_keys, scale, labels: PairLabels | None):
    """Computed from all_keys; the gradient goes to this device's keys."""
    row_lse, _, statistics = xla.forward(queries, all_keys, scale, labels, columns=False, shift=options.shift)
    return jnp.sum(row_lse), statistics


def _sum_forward(options: _SumOptions, queries, keys, all_keys, scale, labels):
    total, statistics, gradients = xla.sum_and_gradients(
        queries, all_keys, scale, labels, shift=options.shift, row_block=options.blocks[0],
        column_block=options.blocks[1], transposed=options.transposed)
    return (total, statistics), gradients


def _sum_backward(options: _SumOptions, gradients, cotangents):
    query_gradient, key_blocks, scale_gradient = gradients
    factor, _ = cotangents
    key_gradient = xla.scaled_key_gradient(key_blocks, factor, options.num_keys, options.transposed)
    if options.axis_name is not None:
        key_gradient = scatter_sum(key_gradient, options.axis_name)
    return ((factor * query_gradient).astype(options.dtype), key_gradient.astype(options.dtype), None,
            factor * scale_gradient, None)


_summed_logsumexp.defvjp(_sum_forward, _sum_backward)


def _functions(options: _Options):
    """(forward, backward) of the chosen implementation with its static options bound."""
    static = {"shift": options.shift, "row_block": options.row_block, "column_block": options.column_block}
    name, _, interpret = options.implementation.partition("_")
    module = _module(name)
    if module is not xla:
        static |= {"interpret": bool(interpret)}
    return functools.partial(module.forward, **static), functools.partial(module.backward, **static)


def _check_arguments(queries, keys, scale, query_labels, key_labels, positives, bound=None) -> None:
    if bound is not None and not bound >= 0:
        raise ValueError(f"bound must be None or the largest |score|, at least 0, not {bound}")
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries [b, D] and keys [N, D] do not match: {queries.shape} and {keys.shape}")
    if 0 in queries.shape or 0 in keys.shape:
        raise ValueError(f"queries [b, D] and keys [N, D] must not be empty: {queries.shape} and {keys.shape}")
    if queries.dtype != keys.dtype:
        raise ValueError(f"queries and keys differ in dtype: {queries.dtype} and {keys.dtype}")
    if queries.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
        raise ValueError(f"queries and keys must be float32 or bfloat16, not {queries.dtype}")
    if jnp.shape(scale) != ():
        raise ValueError(f"scale must be a scalar, not of shape {jnp.shape(scale)}")
    if (query_labels is None) != (positives is None):
        raise ValueError("query_labels and positives go together: give both or neither")
    if query_labels is not None and key_labels is None:
        raise ValueError("query_labels need key_labels: give both, or only key_labels")
    expected = {"query_labels": (query_labels, (queries.shape[0], 2)), "key_labels": (key_labels, (keys.shape[0], 2)),
                "positives": (positives, (queries.shape[0],))}
    for name, (array, shape) in expected.items():
        if array is not None and (array.shape != shape or array.dtype != jnp.int32):
            raise ValueError(f"{name} must be {shape} int32, not {array.shape} {array.dtype}: queries are "
                             f"{queries.shape} and keys {keys.shape}")
