"""From hidden states to embeddings: pooling of each text of a packed block, dense heads, L2 normalisation.

Legend: p packing blocks on this device, R rows per block, r = p R, L tokens per row, S the most texts per row, T texts
per block, D hidden size, E embedding width.
"""

import jax
import jax.numpy as jnp

from data.packing import PackedTexts, max_segments
from kernels.attention.api import Implementation
from model.config import ModelConfig
from model.dropout import DropoutSeed, row_keys
from model.encoder import dense, encode, gelu
from model.parameters import Tree, declare, gather_weights

ACTIVATIONS = {
    "identity": lambda x: x, "tanh": jnp.tanh, "gelu": gelu, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}


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
    """Embeddings [p, T, E] float32 of the packed texts; zeros for empty slots. Unit norm if config.normalize."""
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
            pooled = normalize(pooled) if head_config.normalize_input else pooled
            pooled = ACTIVATIONS[head_config.activation](dense(pooled, head["kernel"], bias))
        pooled = jnp.where((packed.text_segments > 0)[..., None], pooled, 0.0)
        return normalize(pooled) if config.normalize else pooled


def pool(
    hidden: jax.Array,  # [r, L, D]
    pooling: str,  # M modes joined by "+", see ModelConfig
    segments: jax.Array,  # [r, L]
    positions: jax.Array,  # [r, L]
    text_rows: jax.Array,  # [p, T], rows of hidden
    text_segments: jax.Array,  # [p, T], 0 = empty slot
) -> jax.Array:
    """One float32 vector per text, [p, T, M D]: the vectors of all modes, one behind the other."""
    hidden = hidden.astype(jnp.float32)
    slots = max_segments(hidden.shape[1])
    parts = []
    for mode in pooling.split("+"):
        if mode == "max":
            parts.append(_largest(hidden, segments, text_rows, text_segments))
            continue
        pooled = jnp.einsum("rsl,rld->rsd", _token_weights(mode, segments, positions, slots), hidden)
        parts.append(pooled[text_rows, jnp.maximum(text_segments - 1, 0)])
    return jnp.concatenate(parts, axis=-1)


def _largest(hidden: jax.Array, segments: jax.Array, text_rows: jax.Array, text_segments: jax.Array) -> jax.Array:
    """The maximum over each text's tokens, [p, T, D]."""
    rows, length, size = hidden.shape
    slots = max_segments(length)
    ids = segments + (slots + 1) * jnp.arange(rows, dtype=jnp.int32)[:, None]  # segment 0 collects unused tokens
    pooled = jax.ops.segment_max(hidden.reshape(-1, size), ids.reshape(-1), rows * (slots + 1))
    return jnp.where((text_segments > 0)[..., None], pooled[text_rows * (slots + 1) + text_segments], 0.0)


def _token_weights(mode: str, segments: jax.Array, positions: jax.Array, slots: int) -> jax.Array:
    """The weight of each token in the sum that a mode is, [r, S, L] float32."""
    members = segments[:, None, :] == jnp.arange(1, slots + 1, dtype=jnp.int32)[None, :, None]  # [r, S, L]
    if mode in ("cls", "pooler"):
        return (members & (positions == 0)[:, None, :]).astype(jnp.float32)
    count = members.sum(axis=-1, keepdims=True)
    if mode == "lasttoken":
        return (members & (positions[:, None, :] == count - 1)).astype(jnp.float32)
    if mode == "mean_sqrt_len_tokens":
        return members / jnp.sqrt(jnp.maximum(count, 1))
    if mode == "weightedmean":  # by the place in the text, from 1
        places = members * (positions + 1)[:, None, :]
        return places / jnp.maximum(places.sum(axis=-1, keepdims=True), 1)
    return members / jnp.maximum(count, 1)


def normalize(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero, with zero gradient, if x is zero; NaN if x is not finite."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.where(square == 0, 1.0, square))
    return jnp.where(square == 0, 0.0, x * inverse)
