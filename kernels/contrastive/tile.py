"""The arithmetic of one tile of scores: its part of the sums, the gradient and the statistics (xla.py, tpu.py).

  sums      lse_i = c_i + log sum_j exp(s_ij - c_i), likewise over i for the columns
  gradient  dS_ij = g_i exp(s_ij - row_lse_i) + h_j exp(s_ij - column_lse_j)

In general c is a running maximum. If the scores are bounded it is one constant, and E_ij = exp(s_ij - c) is the only
exponential of a tile: it gives the sums of rows and of columns, and dS_ij = E_ij (a_i + b_j) with the weights
a_i = g_i exp(c - row_lse_i) and b_j = h_j exp(c - column_lse_j).

Legend: b query rows, N keys; r rows and c columns of a tile. Values keep both axes: rows are [r, 1], columns [1, c].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.contrastive.labels import is_false_negative

SMALLEST_EXPONENT, LARGEST_EXPONENT = -86.0, 70.0
"""The range of ln exp(s - c) and of its sums. Normal float32 numbers reach from exp(-87.3) to exp(88.7). The limit is
exp(70), so that a weight g exp(c - lse), at least g exp(-70), is normal for cotangents down to 2^-24 = exp(-16.6) of
the largest."""


class Sums(NamedTuple):
    """Exponentials added up so far; the maximum is None if the shift is constant."""

    maximum: jax.Array | None
    total: jax.Array


class RowStatistics(NamedTuple):
    """Statistics of the scores of a row. No gradient flows into them."""

    hardest_negative: jax.Array  # [b] float32: the largest score except that of the row's own positive; -inf if none
    num_left_out: jax.Array  # [b] float32: keys left out as false negatives (exact up to 2^24); not the empty slots


def constant_shift(bound: float | None, num_rows: int, num_keys: int) -> float | None:
    """c = max(0, bound + ln n - 70), n = max(b, N), if that keeps everything in float32's range; else None.

    With |s| <= bound, these exponents occur: s - c >= -bound - c; that of a sum, at most bound + ln n - c; and that of
    a weight, c - lse, which lies between the negatives of these two because -bound <= lse <= bound + ln n. A c with
    -bound - c > -86 and bound + ln n - c <= 70 exists if 2 bound + ln n < 156. At a scale of 20 it always does, and
    c = 0; with 10^6 keys it does up to a scale of 71.
    """
    if bound is None:
        return None
    shift = max(0.0, bound + math.log(max(num_rows, num_keys)) - LARGEST_EXPONENT)
    return shift if -bound - shift > SMALLEST_EXPONENT else None


def no_sums(shape: tuple[int, ...], shift: float | None) -> Sums:
    maximum = jnp.full(shape, -jnp.inf, jnp.float32) if shift is None else None
    return Sums(maximum, jnp.zeros(shape, jnp.float32))


def terms(scores: jax.Array, shift: float | None) -> jax.Array:
    """The terms for `add`: E = exp(s - c) if the shift is constant, else the scores themselves."""
    return scores if shift is None else jnp.exp(scores - shift)


def add(sums: Sums, tile_terms: jax.Array, axis: int) -> Sums:
    """The sums with the tile's terms [r, c] added along an axis."""
    if sums.maximum is None:
        return Sums(None, sums.total + jnp.sum(tile_terms, axis=axis, keepdims=True))
    maximum = jnp.maximum(sums.maximum, jnp.max(tile_terms, axis=axis, keepdims=True))
    shift = finite(maximum)
    added = jnp.sum(jnp.exp(tile_terms - shift), axis=axis, keepdims=True)
    return Sums(maximum, sums.total * jnp.exp(sums.maximum - shift) + added)


def merge(left: Sums, right: Sums) -> Sums:
    """Sums over two disjoint sets of pairs, element by element."""
    if left.maximum is None:
        return Sums(None, left.total + right.total)
    maximum = jnp.maximum(left.maximum, right.maximum)
    shift = finite(maximum)
    left_total, right_total = [sums.total * jnp.exp(sums.maximum - shift) for sums in (left, right)]
    return Sums(maximum, left_total + right_total)


def logsumexp(sums: Sums, shift: float | None) -> jax.Array:
    """The log-sum-exp; -inf if there was no candidate."""
    return (finite(sums.maximum) if shift is None else shift) + jnp.log(sums.total)


def exponentials(tile_terms: jax.Array, sums: Sums) -> jax.Array:
    """exp(s - c) of terms that are already in the sums; c is their maximum, or the constant shift."""
    return tile_terms if sums.maximum is None else jnp.exp(tile_terms - finite(sums.maximum))


def share(maximum: jax.Array | None, lse: jax.Array, shift: float | None) -> jax.Array:
    """exp(c - lse), which makes exp(s - c) a share of the sum; 0 if c is a maximum without a candidate."""
    return jnp.exp((maximum if shift is None else shift) - finite(lse))


def finite(maximum: jax.Array) -> jax.Array:
    """The maximum, or 0 if there was no candidate, so that exp(-inf - maximum) is 0 and not NaN."""
    return jnp.where(maximum == -jnp.inf, 0.0, maximum)


def gradient_values(
    lse: jax.Array,  # [n]
    cotangent: jax.Array,  # [n]
    unit: jax.Array,  # []
    shift: float | None,
) -> tuple[jax.Array, ...]:  # of [n]
    """The values of one side for `score_gradient`: (lse, g / unit), or (the weight,) if the shift is constant.

    All are finite, and the cotangent is 0 if there was no candidate: exp(score - lse) is then exp(-inf), and not NaN.
    """
    empty = lse == -jnp.inf
    lse, cotangent = jnp.where(empty, 0.0, lse), jnp.where(empty, 0.0, cotangent / unit)
    return (lse, cotangent) if shift is None else (cotangent * jnp.exp(shift - lse),)


def cotangent_unit(lses: list[jax.Array], cotangents: list[jax.Array]) -> jax.Array:
    """The largest |g| of a row or column with candidates, or 1: a weight g exp(c - lse) is in range with |g| <= 1."""
    largest = [jnp.max(jnp.where(lse == -jnp.inf, 0.0, jnp.abs(cotangent))) for lse, cotangent in zip(lses, cotangents)]
    unit = jnp.max(jnp.stack(largest))
    return jnp.where(unit > 0, unit, 1.0)


def score_gradient(scores: jax.Array, sides: list[tuple[jax.Array, ...]], shift: float | None) -> jax.Array:
    """dS / unit [r, c] from `gradient_values` of the rows, [r, 1], of the columns, [1, c], or of both."""
    if shift is None:
        return sum(cotangent * jnp.exp(scores - lse) for lse, cotangent in sides)
    return jnp.exp(scores - shift) * sum(weight for (weight,) in sides)


def no_statistics(shape: tuple[int, ...]) -> RowStatistics:
    return RowStatistics(jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.float32))


def add_statistics(
    statistics: RowStatistics, scores: jax.Array, fields: tuple | None, inside: jax.Array | None = None
) -> RowStatistics:
    """The statistics [r, 1] with the tile's scores [r, c] added, which are -inf for pairs that are left out.

    fields are the arguments of is_left_out, or None without labels; `inside` is False beyond the end of an operand.
    """
    hardest, num_left_out = statistics
    if fields is not None:
        row_fields, _, columns = fields
        scores = jnp.where(columns == row_fields[2], -jnp.inf, scores)
        false_negative = is_false_negative(*fields)
        if inside is not None:
            false_negative &= inside
        num_left_out += jnp.sum(jnp.where(false_negative, 1.0, 0.0), axis=1, keepdims=True)
    return RowStatistics(jnp.maximum(hardest, jnp.max(scores, axis=1, keepdims=True)), num_left_out)
