"""out = dropout(softmax(q k^T / sqrt(d) over the tokens of the same text)) v as the formula says: plain jnp, float32.

JAX derives the gradient. This form is easy to check; it is for small problems and tests.

Legend: r rows, L tokens per row, D hidden size, h heads, d = D / h.
"""

import math

import jax
import jax.numpy as jnp

from kernels.dropout import DropoutKeys, keep_mask


def attend(
    qkv: jax.Array,  # [r, L, 3 D]
    segments: jax.Array,  # [r, L] int32
    dropout: DropoutKeys | None,  # [r]
    *,
    num_heads: int,
    rate: float,
) -> jax.Array:  # [r, L, D] in qkv's dtype
    rows, length, width = qkv.shape
    parts = qkv.astype(jnp.float32).reshape(rows, length, 3, num_heads, width // (3 * num_heads))
    queries, keys, values = jnp.moveaxis(parts, 2, 0)  # [r, L, h, d]
    highest = {"precision": jax.lax.Precision.HIGHEST}
    scores = jnp.einsum("rqhd,rkhd->rhqk", queries, keys, **highest) / math.sqrt(queries.shape[-1])
    same_text = segments[:, None, :, None] == segments[:, None, None, :]
    probabilities = jax.nn.softmax(jnp.where(same_text, scores, -jnp.inf), axis=-1)
    if dropout is not None:
        kept = keep_mask(dropout, probabilities.shape, rate)
        probabilities = jnp.where(kept, probabilities / (1 - rate), 0.0)
    out = jnp.einsum("rhqk,rkhd->rqhd", probabilities, values, **highest)
    return out.reshape(rows, length, width // 3).astype(qkv.dtype)
