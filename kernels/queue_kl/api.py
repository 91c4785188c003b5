"""queue_kl: KL(softmax(r_i Q^T / tau_ref) || softmax(z_i Q^T / tau)) over a long queue, and its primitive queue_sums.

The queue is a buffer of past embeddings, split over the devices. If the batch's own rows belong to it (SCT: [Q; r]),
the buffer has room for N rows and a batch, and the caller overwrites the oldest rows before the loss: nothing is
concatenated.

Legend: b rows of this device, B of all devices; N queue rows, n of this device; D embedding width.
"""

import functools
import importlib
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from kernels.implementation import choose_implementation
from kernels.queue_kl import reference, xla
from kernels.queue_kl.sums import RowValues, Side, make_sides
from sharding.collectives import AxisName, all_gather_with_gradient, psum_logsumexp, scatter_sum

Implementation = Literal["auto", "reference", "xla", "tpu", "tpu_interpret"]


class _Options(NamedTuple):
    implementation: str
    sides: tuple[Side, Side]
    row_block: int | None
    queue_block: int | None
    axis_name: AxisName | None


def queue_kl(
    references: jax.Array,  # [b, D] float32 or bfloat16
    embeddings: jax.Array,  # [b, D], the references' dtype
    queue: jax.Array,  # [n, D], the same dtype
    *,
    reference_temperature: float,
    temperature: float,
    axis_name: AxisName | None = None,
    unit_norm: bool = False,
    implementation: Implementation = "auto",
    row_block: int | None = None,
    queue_block: int | None = None,
) -> jax.Array:  # [b] float32
    """KL_i = sum_j p_ij (log p_ij - log q_ij), p_i = softmax(r_i Q^T / tau_ref), q_i = softmax(z_i Q^T / tau).

    Source: L_SCT of Limkonchotiwat et al. 2023 (SCT, TACL). Computed from queue_sums as gap_i - lse_ref_i + lse_i. The
    gradient is dz_i = g_i / tau sum_j (q_ij - p_ij) Q_j; references and queue get none. It saves its operands and two
    log-sum-exps per row, and never forms [b, n]. With u = b N D, forward and backward cost a device 10u FLOPs. (One
    pass that sums p_ij Q_j and q_ij Q_j separately would cost 8u, but the difference of two sums of bfloat16 products
    loses the gradient if q is close to p.)

    Over devices (axis_name, inside shard_map): each holds b rows and its own n rows of the queue. The rows of all
    devices are gathered, each device sums over its part of the queue for all B of them, and psum combines the sums. So
    2 B D numbers travel instead of the N D of the queue, and only one device reads each row of the queue. Every device
    returns its own rows. If the devices' losses add up, as sum_i KL_i / B does to the mean over the global batch, AD of
    each device's loss is the exact gradient of the whole (check_vma=False).

    Args:
      unit_norm: promises that no row of any operand is longer than 1 (except for rounding). Scores are then bounded,
        and a constant shift replaces the running maximum if float32 has the range (temperatures above about 0.016).
      implementation: "auto" is "tpu" on a TPU and "xla" elsewhere; a named one raises ValueError if it cannot run.
      row_block, queue_block: tile sizes; None lets the implementation choose.

    Returns:
      KL [b], float32, not averaged.
    """
    options = {"reference_temperature": reference_temperature, "temperature": temperature, "unit_norm": unit_norm,
               "implementation": implementation, "row_block": row_block, "queue_block": queue_block}
    if axis_name is None:
        reference_lse, lse, gap = queue_sums(references, embeddings, queue, **options)
        return _divergence(reference_lse, lse, gap)
    num_rows, device = references.shape[0], jax.lax.axis_index(axis_name)
    references = all_gather_with_gradient(jax.lax.stop_gradient(references), axis_name)
    local_reference_lse, local_lse, gap = queue_sums(references, embeddings, queue, axis_name=axis_name, **options)
    shifts = [side.shift for side in make_sides(
        1 / reference_temperature, 1 / temperature, queue.shape[0] * jax.lax.axis_size(axis_name), unit_norm)]
    reference_lse, lse = psum_logsumexp(jnp.stack([local_reference_lse, local_lse]), axis_name,
                                        None if None in shifts else jnp.array(shifts)[:, None])
    shift = jnp.where(reference_lse == -jnp.inf, 0.0, reference_lse)
    gap = jax.lax.psum(jnp.exp(local_reference_lse - shift) * gap, axis_name)  # weighted by each device's share of p
    divergence = _divergence(reference_lse, lse, gap)
    return jax.lax.dynamic_slice_in_dim(divergence, device * num_rows, num_rows)


def _divergence(reference_lse, lse, gap):
    return jnp.where(reference_lse == -jnp.inf, 0.0, gap - reference_lse + lse)


def queue_sums(
    references: jax.Array,  # [b, D]
    embeddings: jax.Array,  # [b, D]
    queue: jax.Array,  # [n, D]
    *,
    reference_temperature: float,
    temperature: float,
    axis_name: AxisName | None = None,
    unit_norm: bool = False,
    implementation: Implementation = "auto",
    row_block: int | None = None,
    queue_block: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """lse_ref_i = log sum_j exp(s_ref_ij), lse_i = log sum_j exp(s_ij), gap_i = sum_j p_ij (s_ref_ij - s_ij).

    s_ref = r Q^T / tau_ref, p = softmax(s_ref) and s = z Q^T / tau, over the n queue rows given. Differentiable in the
    embeddings only. The arguments are those of queue_kl, except:

    Args:
      axis_name: the references are those of all devices, [B, D], and b = B; the embeddings are this device's and are
        gathered. Their gradient is summed over the devices in float32, and only then rounded to their dtype.

    Returns:
      lse_ref [b], lse [b] and gap [b], float32.
    """
    all_embeddings = embeddings if axis_name is None else all_gather_with_gradient(embeddings, axis_name)
    _check(references, all_embeddings, queue, reference_temperature, temperature)
    chosen = choose_implementation("queue_kl", implementation, get_args(Implementation), queue.dtype)
    references, queue = jax.lax.stop_gradient((references, queue))
    with jax.named_scope("queue_sums"):
        if chosen == "reference":
            return reference.queue_sums(
                references, all_embeddings, queue, reference_scale=1 / reference_temperature, scale=1 / temperature)
        sides = make_sides(1 / reference_temperature, 1 / temperature, queue.shape[0], unit_norm)
        options = _Options(chosen, sides, row_block, queue_block, axis_name)
        all_embeddings = jax.lax.stop_gradient(all_embeddings)
        return _queue_sums(options, embeddings, references, all_embeddings, queue)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _queue_sums(options: _Options, embeddings, references, all_embeddings, queue):
    """Computed from all_embeddings; the gradient goes to this device's embeddings."""
    forward, _ = _functions(options)
    return forward(references, all_embeddings, queue)


def _forward(options: _Options, embeddings, *operands):
    reference_lse, lse, gap = _queue_sums(options, embeddings, *operands)
    return (reference_lse, lse, gap), (operands, reference_lse, lse)


def _backward(options: _Options, residuals, cotangents):
    operands, reference_lse, lse = residuals
    _, lse_cotangent, gap_cotangent = cotangents
    _, backward = _functions(options)
    dtype = operands[1].dtype
    gradient = backward(*operands, RowValues(reference_lse, lse, lse_cotangent, gap_cotangent),
                        gradient_dtype=dtype if options.axis_name is None else jnp.float32)
    if options.axis_name is not None:
        gradient = scatter_sum(gradient, options.axis_name)
    return gradient.astype(dtype), None, None, None


_queue_sums.defvjp(_forward, _backward)


def _functions(options: _Options):
    """(forward, backward) of the chosen implementation with its static options bound."""
    static = {"sides": options.sides, "row_block": options.row_block, "queue_block": options.queue_block}
    name, _, interpret = options.implementation.partition("_")
    module = importlib.import_module(f"kernels.queue_kl.{name}")  # Pallas only if it runs: its import takes long
    if module is not xla:
        static |= {"interpret": bool(interpret)}
    return functools.partial(module.forward, **static), functools.partial(module.backward, **static)


def _check(references, embeddings, queue, reference_temperature, temperature) -> None:
    operands = {"references [b, D]": references, "embeddings [b, D]": embeddings, "queue [n, D]": queue}
    shapes = ", ".join(f"{name} {array.shape}" for name, array in operands.items())
    if any(array.ndim != 2 or 0 in array.shape for array in operands.values()):
        raise ValueError(f"every operand must be a matrix that is not empty: {shapes}")
    if references.shape != embeddings.shape or queue.shape[1] != embeddings.shape[1]:
        raise ValueError(f"operands do not match: {shapes}")
    dtypes = {str(array.dtype) for array in operands.values()}
    if len(dtypes) > 1 or queue.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"operands must be all float32 or all bfloat16, not {' and '.join(sorted(dtypes))}")
    if not (reference_temperature > 0 and temperature > 0):
        raise ValueError(f"temperatures must be positive: {reference_temperature=} and {temperature=}")
