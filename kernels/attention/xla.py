"""out = dropout(softmax(q k^T / sqrt(d) over the tokens of the same text)) v by plain XLA, for any back end.

The backward pass keeps the output and one log-sum-exp per query, and recomputes the scores. On the CPU it handles r of
the rows at a time, so that their scores [r, h, L, L] stay in the cache; elsewhere all rows at once. Three things matter
on the CPU: scores in the cache; a mask that multiplies (the exponential of a masked score is a denormal number, which
slows every later product down); and products whose left operand is contracted over its last axis (others are slow).

Legend: r rows, L tokens per row, D hidden size, h heads, d = D / h.
"""

import functools
import math

import jax
import jax.numpy as jnp

from kernels.dropout import DropoutKeys, keep_mask

CACHED_SCORES = 2**20  # scores at a time on the CPU: 4 MiB


def forward(
    qkv: jax.Array,  # [r, L, 3 D]
    same_text: jax.Array,  # [r, L, L] float32: 1 where both tokens are of one text, else 0
    dropout: DropoutKeys | None,  # [r]
    *,
    num_heads: int,
    rate: float,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:  # out [r, L, D]; residuals of the backward: out, log-sum-exps
    function = functools.partial(_forward, num_heads=num_heads, rate=rate)
    out, logsumexp = _over_rows(function, num_heads, qkv, same_text, dropout)
    return out, (out, logsumexp)


def backward(
    qkv: jax.Array,  # [r, L, 3 D]
    same_text: jax.Array,  # [r, L, L] float32
    dropout: DropoutKeys | None,  # [r]
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,  # [r, L, D]
    *,
    num_heads: int,
    rate: float,
) -> jax.Array:  # [r, L, 3 D]
    function = functools.partial(_backward, num_heads=num_heads, rate=rate)
    return _over_rows(function, num_heads, qkv, same_text, dropout, *residuals, gradient)


def _over_rows(function, num_heads: int, *arrays):
    """function(*arrays), on the CPU applied to a few rows at a time."""
    rows, length = arrays[0].shape[:2]
    most = max(1, CACHED_SCORES // (num_heads * length * length))
    chunk = max(size for size in range(1, min(most, rows) + 1) if rows % size == 0)
    if chunk == rows:
        return function(*arrays)

    def chunked(*arrays):
        split = jax.tree.map(lambda x: x.reshape(rows // chunk, chunk, *x.shape[1:]), arrays)
        result = jax.lax.map(lambda few: function(*few), split)
        return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), result)

    return jax.lax.platform_dependent(*arrays, cpu=chunked, default=function)


def _split(qkv: jax.Array, num_heads: int) -> jax.Array:
    """[r, L, 3 D] -> [3, r, h, L, d]."""
    rows, length, width = qkv.shape
    return qkv.reshape(rows, length, 3, num_heads, width // (3 * num_heads)).transpose(2, 0, 3, 1, 4)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _forward(qkv, same_text, keys, *, num_heads, rate):
    """-> attended values [r, L, D], log-sum-exp of the scores [r, h, L] float32."""
    rows, length, width = qkv.shape
    queries, keys_, values = _split(qkv, num_heads)
    queries = queries * (1 / math.sqrt(queries.shape[-1]))
    mask = same_text[:, None]  # [r, 1, L, L]
    scores = _product("rhqd,rhkd->rhqk", queries, keys_)
    maximum = jnp.where(mask > 0, scores, -1e30).max(axis=-1, keepdims=True)
    # The minimum changes nothing where the mask is 1, and keeps infinities out where it is 0.
    exponentials = jnp.exp(jnp.minimum(scores - maximum, 0.0)) * mask
    total = exponentials.sum(axis=-1, keepdims=True)
    logsumexp = (maximum + jnp.log(total))[..., 0]
    if keys is not None:
        exponentials = jnp.where(keep_mask(keys, exponentials.shape, rate), exponentials, 0.0)
        total *= 1 - rate
    out = _product("rhqk,rhkd->rhqd", exponentials.astype(qkv.dtype), values) / total
    return out.astype(qkv.dtype).transpose(0, 2, 1, 3).reshape(rows, length, width // 3), logsumexp


def _backward(qkv, same_text, keys, out, logsumexp, gradient, *, num_heads, rate):
    """-> gradient of qkv, [r, L, 3 D]. The scores are computed again, and the dropout mask too."""
    rows, length, width = qkv.shape
    size = width // (3 * num_heads)
    queries, keys_, values = _split(qkv, num_heads)
    scale = 1 / math.sqrt(size)
    queries = queries * scale
    heads = (rows, length, num_heads, size)
    # sum_k p_qk dp_qk = <out_q, gradient_q>, dropout or not.
    inner = (gradient.reshape(heads).astype(jnp.float32) * out.reshape(heads)).sum(axis=-1).transpose(0, 2, 1)
    gradient = gradient.reshape(heads).transpose(0, 2, 1, 3)  # [r, h, L, d]

    scores = _product("rhqd,rhkd->rhqk", queries, keys_)
    probabilities = jnp.exp(jnp.minimum(scores - logsumexp[..., None], 0.0)) * same_text[:, None]
    dropped = probabilities
    if keys is not None:
        keep = keep_mask(keys, probabilities.shape, rate)
        dropped = jnp.where(keep, probabilities * (1 / (1 - rate)), 0.0)
    d_scores = dropped * _product("rhqd,rhkd->rhqk", gradient, values) - probabilities * inner[..., None]
    dropped, d_scores = dropped.astype(qkv.dtype), d_scores.astype(qkv.dtype)

    d_queries = _product("rhqk,rhkd->rhqd", d_scores, keys_).transpose(0, 2, 1, 3) * scale
    d_keys = _product("rhdq,rhqk->rhdk", queries.transpose(0, 1, 3, 2), d_scores).transpose(0, 3, 1, 2)
    d_values = _product("rhdq,rhqk->rhdk", gradient.transpose(0, 1, 3, 2), dropped).transpose(0, 3, 1, 2)
    parts = [part.reshape(rows, length, width // 3) for part in (d_queries, d_keys, d_values)]
    return jnp.concatenate(parts, axis=-1).astype(qkv.dtype)
