"""From hidden states to embeddings: pooling of each text of a packed block, dense heads, L2 normalisation.

p local packing blocks, R rows a block, r = p * R, L tokens a row, S texts a row at most, T texts a block, D hidden
size, d embedding size.
"""

import jax
import jax.numpy as jnp

from data.packing import PackedTexts, max_segments
from kernels.attention.api import Implementation
from model.config import ModelConfig
from model.dropout import DropoutSeed, row_keys
from model.encoder import dense, encode
from model.parameters import Tree, declare, gather_weights


def embed(
    parameters: Tree,
    config: ModelConfig,
    packed: PackedTexts,  # tokens [p, R, L], text_rows [p, T]
    *,
    dtype: jnp.dtype = jnp.float32,
    dropout: DropoutSeed | None = None,
    remat: bool = False,
    first_block: jax.Array | int = 0,  # global index of the first local block: names the dropout masks
    attention_implementation: Implementation = "auto",
) -> jax.Array:
    """Embeddings [p, T, d] float32 of the packed texts; zeros for empty slots. Unit norm if config.normalize."""
    blocks, rows, length = packed.tokens.shape
    keys = None if dropout is None else row_keys(dropout, first_block, blocks, rows)
    tokens, segments, positions = (
        array.reshape(blocks * rows, length) for array in (packed.tokens, packed.segments, packed.positions)
    )
    hidden = encode(
        parameters, config.encoder, tokens, segments, positions, dtype=dtype, dropout=keys, remat=remat,
        attention_implementation=attention_implementation,
    )
    text_rows = packed.text_rows + rows * jnp.arange(blocks, dtype=jnp.int32)[:, None]
    with jax.named_scope("pooling"):
        pooled = pool(hidden, config.pooling, segments, positions, text_rows, packed.text_segments)
        if config.pooling == "pooler":
            head = gather_weights(parameters["pooler"], declare(config)["pooler"], dtype)
            pooled = jnp.tanh(dense(pooled, head["kernel"], head["bias"]))
        for index, head_config in enumerate(config.dense):
            name = f"dense_{index}"
            head = gather_weights(parameters[name], declare(config)[name], dtype)
            bias = head["bias"] if head_config.bias else jnp.zeros(head_config.out_features)
            pooled = dense(pooled, head["kernel"], bias)
            if head_config.activation == "tanh":
                pooled = jnp.tanh(pooled)
        pooled = jnp.where((packed.text_segments > 0)[..., None], pooled, 0.0)
        return normalize(pooled) if config.normalize else pooled


def pool(
    hidden: jax.Array,  # [r, L, D]
    pooling: str,
    segments: jax.Array,  # [r, L]
    positions: jax.Array,  # [r, L]
    text_rows: jax.Array,  # [p, T], rows of hidden
    text_segments: jax.Array,  # [p, T], 0 = empty slot
) -> jax.Array:
    """One float32 vector a text, [p, T, D]: the mean or maximum of its tokens, or its first token."""
    rows, length, size = hidden.shape
    slots = max_segments(length)
    hidden = hidden.astype(jnp.float32)
    if pooling == "max":
        ids = segments + (slots + 1) * jnp.arange(rows, dtype=jnp.int32)[:, None]  # segment 0 collects unused tokens
        pooled = jax.ops.segment_max(hidden.reshape(-1, size), ids.reshape(-1), rows * (slots + 1))
        return jnp.where((text_segments > 0)[..., None], pooled[text_rows * (slots + 1) + text_segments], 0.0)
    members = segments[:, None, :] == jnp.arange(1, slots + 1, dtype=jnp.int32)[None, :, None]  # [r, S, L]
    if pooling == "mean":
        weights = members / jnp.maximum(members.sum(axis=-1, keepdims=True), 1)
    else:  # "cls" and "pooler" look at the first token
        weights = (members & (positions == 0)[:, None, :]).astype(jnp.float32)
    pooled = jnp.einsum("rsl,rld->rsd", weights, hidden)
    return pooled[text_rows, jnp.maximum(text_segments - 1, 0)]


def normalize(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero, with zero gradient, where x is zero."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where(square > 0, x * inverse, 0.0)
