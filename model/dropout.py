"""Dropout masks from a counter-based integer hash: a mask depends only on (seed, step, block, row, layer, site).

There is no state, nothing is stored for the backward pass, and every backend gives the same bits. A row is named by its
packing block, so a mask depends neither on the number of devices nor on the number of rows of the other blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.dropout import DropoutKeys, keep_mask

# Sites of a layer. The embeddings count as one of layer 0; no layer has a site of that number.
EMBEDDINGS, ATTENTION_PROBABILITIES, ATTENTION_OUTPUT, FEED_FORWARD_OUTPUT = range(4)


class DropoutSeed(NamedTuple):
    """Names the masks of a step. Both may be traced."""

    seed: jax.Array | int  # [] uint32
    step: jax.Array | int  # [] uint32


def _mix(state: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: every input bit changes every output bit with a probability of about 1/2."""
    state = (state ^ (state >> 16)) * np.uint32(0x85EBCA6B)
    state = (state ^ (state >> 13)) * np.uint32(0xC2B2AE35)
    return state ^ (state >> 16)


def _absorb(keys: DropoutKeys, word: jax.Array | int) -> DropoutKeys:
    """The keys after one more 32-bit word of input (scalar, or one per row)."""
    word = jnp.asarray(word, jnp.uint32)
    return DropoutKeys(
        _mix(keys.low * np.uint32(0x9E3779B1) + word), _mix((keys.high ^ word) * np.uint32(0x7FEB352D) + np.uint32(1))
    )


def row_keys(seed: DropoutSeed, first_block: jax.Array | int, num_blocks: int, num_rows: int) -> DropoutKeys:
    """Keys [num_blocks * num_rows] of the rows of consecutive packing blocks; first_block is the global index."""
    blocks = jnp.asarray(first_block, jnp.uint32) + jnp.repeat(jnp.arange(num_blocks, dtype=jnp.uint32), num_rows)
    rows = jnp.tile(jnp.arange(num_rows, dtype=jnp.uint32), num_blocks)
    keys = DropoutKeys(jnp.full_like(rows, 0x243F6A88), jnp.full_like(rows, 0x85A308D3))  # digits of pi
    for word in (seed.seed, seed.step, blocks, rows):
        keys = _absorb(keys, word)
    return keys


def site_keys(keys: DropoutKeys, layer: jax.Array | int, site: int) -> DropoutKeys:
    """The rows' keys for one site of one layer."""
    return _absorb(_absorb(keys, layer), site)


def dropout(x: jax.Array, keys: DropoutKeys | None, layer: jax.Array | int, site: int, rate: float) -> jax.Array:
    """x [r, ...] with elements dropped at `rate` and the kept ones scaled by 1 / (1 - rate); x itself without keys."""
    if keys is None or rate == 0.0:
        return x
    keep = keep_mask(site_keys(keys, layer, site), x.shape, rate)
    return jnp.where(keep, x * (1 / (1 - rate)), jnp.zeros((), x.dtype))
