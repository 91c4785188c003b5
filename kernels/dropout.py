"""Dropout masks from a counter-based integer hash: the same bits in XLA, in kernels and on every back end.

Nothing is stored for the backward pass: it computes the mask again. model/dropout.py makes the keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class DropoutKeys(NamedTuple):
    """A 64-bit key for each row."""

    low: jax.Array  # [r] uint32
    high: jax.Array  # [r] uint32


def keep_mask(keys: DropoutKeys, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Boolean [r, ...], each element true with probability 1 - rate. Its index within the row is the counter."""
    one_row = (1, *shape[1:])
    counter = jnp.zeros(one_row, jnp.uint32)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        counter += jax.lax.broadcasted_iota(jnp.uint32, one_row, axis) * np.uint32(stride)
        stride *= shape[axis]
    low, high = (jnp.reshape(key, (-1,) + (1,) * (len(shape) - 1)) for key in keys)
    return keep(counter, low, high, rate)


def keep(counter: jax.Array, low: jax.Array, high: jax.Array, rate: float) -> jax.Array:
    """Whether each counter of the key (low, high) is kept, elementwise; all uint32."""
    state = (counter ^ low) * np.uint32(0x9E3779B1)
    state = ((state ^ (state >> 15)) + high) * np.uint32(0x85EBCA6B)
    state = (state ^ (state >> 13)) * np.uint32(0xC2B2AE35)
    return state >= np.uint32(round(rate * 2**32))
