"""Collectives over the data axis with the gradients that the exact global loss needs.

Inside shard_map with check_vma=False, AD differentiates the SUM over devices of what each device returns: psum
transposes to psum, a tiled all-gather to a reduce-scatter. So a loss is exact if the devices' losses add up to it:
each returns its own share (its rows, its columns), never a copy of the whole.

Legend: n keys per device, N keys of all devices.
"""

import functools
import math

import jax
import jax.numpy as jnp

AxisName = str | tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def all_gather_with_gradient(
    local: jax.Array,  # [n, ...]
    axis_name: AxisName,
) -> jax.Array:  # [N, ...], in device order
    """Every device's rows; the gradient of a row is summed over the devices and returns to the one that owns it.

    Each device's part of it is rounded to the rows' dtype before: kernels/contrastive/api.py has a sum in float32.
    """
    return jax.lax.all_gather(local, axis_name, tiled=True)


all_gather_with_gradient.defvjp(
    lambda local, axis_name: (all_gather_with_gradient(local, axis_name), None),
    lambda axis_name, _, gradient: (scatter_sum(gradient, axis_name),))


def scatter_sum(whole: jax.Array, axis_name: AxisName, axis: int = 0) -> jax.Array:
    """The sum over the devices of arrays of one shape, each device with its part of it along `axis`.

    Over one mesh axis after the other, and of columns each with an array axis of its own: otherwise libtpu makes an
    all-reduce of it, which sends twice as much (v5e 4x4, v5p 2x2x2; jax 0.10).
    """
    names = [axis_name] if isinstance(axis_name, str) else [name for name in axis_name if jax.lax.axis_size(name) > 1]
    before, after = whole.shape[:axis], whole.shape[axis + 1:]
    of_columns = axis == whole.ndim - 1 > 0
    if of_columns:
        sizes = [jax.lax.axis_size(name) for name in names]
        whole = whole.reshape(*before, *sizes, whole.shape[-1] // math.prod(sizes))
    elif len(after) > 1:
        whole = whole.reshape(*before, whole.shape[axis], -1)
    for place, name in enumerate(names):
        whole = jax.lax.psum_scatter(
            whole, name, scatter_dimension=axis + place if of_columns else axis, tiled=True)
    return whole.reshape(*before, -1, *after)


def psum_logsumexp(
    partial: jax.Array,  # [N] float32
    axis_name: AxisName,
    shift: float | None = None,
) -> jax.Array:  # [N], the same on every device
    """log sum_d exp(partial_d): log-sum-exps over each device's rows combined into those over all rows.

    Shifted by the maximum over devices, so it does not overflow. A column without candidates anywhere (-inf on every
    device) stays -inf and has the gradient zero.

    Args:
      shift: a constant in place of that maximum, and of its collective: the caller's promise that exp(partial - shift)
        and its sum are in range.
    """
    if shift is None:
        maximum = jax.lax.pmax(jax.lax.stop_gradient(partial), axis_name)
        shift = jnp.where(maximum == -jnp.inf, 0.0, maximum)
    total = jax.lax.psum(jnp.exp(partial - shift), axis_name)
    occupied = total > 0
    return jnp.where(occupied, shift + jnp.log(jnp.where(occupied, total, 1.0)), -jnp.inf)
