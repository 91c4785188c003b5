"""Whole weights out of the shares that devices hold, inside shard_map, and the sums of gradients that go back to them.

A share tells by its shape which axis is split: it is smaller there than the array that was declared. An array of the
declared shape is whole, and these functions return it as it is, without a collective.

Legend: W devices in a replica, V rows and D columns of a table, n indices.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from sharding.collectives import scatter_sum
from sharding.layout import DEVICES, REPLICA, SHARD, shard_axis


def split_axis(share: jax.Array, shape: tuple[int, ...]) -> int | None:
    """The axis along which the array of that shape is split; None if the share is all of it.

    Raises ValueError if the share cannot be a part of such an array.
    """
    if share.ndim != len(shape):
        raise ValueError(f"a share of shape {share.shape} is no part of an array of shape {shape}")
    smaller = [axis for axis, (part, whole) in enumerate(zip(share.shape, shape)) if part != whole]
    if not smaller:
        return None
    [axis, *others] = smaller
    if others or share.shape[axis] * lax.axis_size(SHARD) != shape[axis]:
        raise ValueError(f"a share of shape {share.shape} on {lax.axis_size(SHARD)} devices is no part of an array of "
                         f"shape {shape}")
    return axis


def gather_share(share: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The whole array that the share is a part of, float32.

    A split array is sent in `dtype`, and so rounded to it. The gradient that returns is summed over the replica's
    devices in float32.
    """
    axis = split_axis(share, shape)
    return share if axis is None else _gather(share, axis, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(share: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
    return lax.all_gather(share.astype(dtype), SHARD, axis=axis, tiled=True).astype(share.dtype)


def _gather_backward(axis, dtype, _, gradient):
    return (scatter_sum(gradient, SHARD, axis),)


_gather.defvjp(lambda share, axis, dtype: (_gather(share, axis, dtype), None), _gather_backward)


def look_up(
    share: jax.Array,  # of a table [V, D] float32: [V, D], [V, D / W] or [V / W, D]
    indices: jax.Array,  # [n, ...] int32, as many on every device
    shape: tuple[int, int],  # V, D
    dtype: jnp.dtype,
) -> jax.Array:  # [n, ..., D] float32
    """table[indices]; the rows of a split table are sent in `dtype`, and no device ever holds all of it.

    Each device looks up the indices of all devices in its share. Of columns it sends every device its part of the rows
    that this device asked for, n D numbers in all. Rows that it lacks it takes as zeros, and sums over the devices make
    the rows whole: W n D numbers.
    """
    axis = split_axis(share, shape)
    if axis is None:
        return share[indices]
    of_all = lax.all_gather(indices, SHARD, tiled=True)  # [W n, ...]
    if axis == 1:
        parts = share[of_all].astype(dtype)
        return lax.all_to_all(parts, SHARD, 0, parts.ndim - 1, tiled=True).astype(share.dtype)
    places = of_all - lax.axis_index(SHARD) * share.shape[0]
    is_here = (places >= 0) & (places < share.shape[0])
    rows = jnp.where(is_here[..., None], share[jnp.where(is_here, places, 0)], 0.0)
    return scatter_sum(rows.astype(dtype), SHARD).astype(share.dtype)


def reduce_gradient(gradient: jax.Array, parameter: PartitionSpec, reduced: PartitionSpec) -> jax.Array:
    """A device's gradient -> its part, laid out as `reduced`, of the sum over all devices.

    Args:
      parameter: how the parameter is split. The gradient of a share is already summed over the replica (_gather).
      reduced: how the sum is to be split: as the parameter, or over the shards too.
    """
    if shard_axis(parameter) is not None:
        return lax.psum(gradient, REPLICA)
    if (axis := shard_axis(reduced)) is None:
        return lax.psum(gradient, DEVICES)
    return lax.psum(scatter_sum(gradient, SHARD, axis), REPLICA)
