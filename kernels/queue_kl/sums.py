"""sum_j exp(s_ij - m_i) and sum_j exp(s_ref_ij - m_ref_i) (s_ref_ij - s_ij), tile by tile, and their gradient.

Plain jnp on tiles [r, c] and columns [r, 1], all float32: it runs in XLA and inside a TPU kernel.

Legend: r rows and c queue rows of a tile.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.products import UNIT_NORM_PRODUCT

LOG_LARGEST, LOG_SMALLEST = 88.0, -87.0
"""Between these, exp is finite in float32 and not flushed to zero."""
LOG_ROUNDING = -24 * math.log(2)


class Side(NamedTuple):
    """One of the two softmaxes, reference or online; static. Its scores are scale * <row, queue row>."""

    scale: float
    shift: float | None  # the constant m; None: m is the row's running maximum


class Sums(NamedTuple):
    """The sums over the queue rows seen so far; each [r, 1]."""

    reference_maximum: jax.Array
    reference_total: jax.Array
    gap_total: jax.Array
    maximum: jax.Array
    total: jax.Array


class RowValues(NamedTuple):
    """The values of each row that the backward pass needs; each [r, 1]."""

    reference_lse: jax.Array
    lse: jax.Array
    lse_cotangent: jax.Array
    gap_cotangent: jax.Array


def make_sides(reference_scale: float, scale: float, num_queue_rows: int, unit_norm: bool) -> tuple[Side, Side]:
    """(reference, online), with constant shifts if unit norms bound the scores closely enough."""
    if not unit_norm:
        return Side(reference_scale, None), Side(scale, None)
    bounds = UNIT_NORM_PRODUCT * reference_scale, UNIT_NORM_PRODUCT * scale
    shifts = [constant_shift(bound, sum(bounds), num_queue_rows) for bound in bounds]
    return Side(reference_scale, shifts[0]), Side(scale, shifts[1])


def constant_shift(bound: float, largest_gap: float, num_terms: int) -> float | None:
    """m, 0 if possible, such that sums of num_terms scores in [-bound, bound] neither overflow nor lose digits.

    No digit is lost if all terms that could be flushed to zero are together smaller than the rounding error of the
    smallest possible sum, exp(-bound - m). This bounds m from above. None if the sum weighted by gaps could then
    overflow. With 131,072 queue rows the limit is a temperature of about 0.016.
    """
    shift = min(0.0, -bound + LOG_ROUNDING - LOG_SMALLEST - math.log(num_terms))
    overflows = bound - shift + math.log(num_terms) + math.log(max(largest_gap, 1.0)) > LOG_LARGEST
    return None if overflows else shift


def no_sums(num_rows: int, sides: tuple[Side, Side]) -> Sums:
    reference, online = sides

    def filled(value):
        return jnp.full((num_rows, 1), value, jnp.float32)

    maxima = [-jnp.inf if side.shift is None else side.shift for side in (reference, online)]
    return Sums(filled(maxima[0]), filled(0.0), filled(0.0), filled(maxima[1]), filled(0.0))


def add_tile(
    sums: Sums,
    reference_scores: jax.Array,  # [r, c]
    scores: jax.Array,  # [r, c]
    left_out: jax.Array | None,  # bool, broadcasts to [r, c]
    sides: tuple[Side, Side],
) -> Sums:
    gaps = reference_scores - scores
    if left_out is not None:
        gaps = jnp.where(left_out, 0.0, gaps)
        reference_scores = jnp.where(left_out, -jnp.inf, reference_scores)
        scores = jnp.where(left_out, -jnp.inf, scores)
    reference, online = sides
    reference_maximum, decay, weights = _shifted(sums.reference_maximum, reference_scores, reference)
    reference_total = sums.reference_total * decay + jnp.sum(weights, axis=1, keepdims=True)
    gap_total = sums.gap_total * decay + jnp.sum(weights * gaps, axis=1, keepdims=True)
    maximum, decay, weights = _shifted(sums.maximum, scores, online)
    total = sums.total * decay + jnp.sum(weights, axis=1, keepdims=True)
    return Sums(reference_maximum, reference_total, gap_total, maximum, total)


def _shifted(maximum, scores, side: Side):
    """(new maximum, the factor for the sums so far, exp(scores - new maximum))."""
    if side.shift is not None:
        return maximum, 1.0, jnp.exp(scores - side.shift)
    new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1, keepdims=True))
    shift = _finite(new_maximum)
    return new_maximum, jnp.exp(maximum - shift), jnp.exp(scores - shift)


def finish(sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:  # reference_lse, lse, gap, each [r, 1]
    reference_lse = _finite(sums.reference_maximum) + jnp.log(sums.reference_total)
    lse = _finite(sums.maximum) + jnp.log(sums.total)
    return reference_lse, lse, sums.gap_total / jnp.where(sums.reference_total == 0.0, 1.0, sums.reference_total)


def _finite(maximum):
    """The maximum, or 0 if there was no score, so that exp(-inf - maximum) is 0 and not NaN."""
    return jnp.where(maximum == -jnp.inf, 0.0, maximum)


def score_gradient(
    reference_scores: jax.Array,  # [r, c]
    scores: jax.Array,  # [r, c]
    left_out: jax.Array | None,  # bool, broadcasts to [r, c]
    values: RowValues,
) -> jax.Array:  # [r, c]
    """ds_ij = dlse_i exp(s_ij - lse_i) - dgap_i exp(s_ref_ij - lse_ref_i): for a loss of KL rows, g_i (q_ij - p_ij)."""
    gradient = (values.lse_cotangent * jnp.exp(scores - values.lse)
                - values.gap_cotangent * jnp.exp(reference_scores - values.reference_lse))
    return gradient if left_out is None else jnp.where(left_out, 0.0, gradient)
