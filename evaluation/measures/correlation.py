"""Correlations of two lists of numbers, in numpy (tests compare them with scipy)."""

import numpy as np


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks. [n] -> [n] float64."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the largest rank of each distinct value
    return (last - (counts - 1) / 2)[inverse]


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2), of x [n] and y [n].

    Raises ValueError if it is undefined: unequal or too short inputs, values that are not finite, a constant input.
    """
    _check_defined("Pearson", x, y)
    return _correlation(np.asarray(x, np.float64), np.asarray(y, np.float64))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """rho = Pearson correlation of the average ranks of x [n] and y [n]; errors as there."""
    _check_defined("Spearman", x, y)
    return _correlation(average_ranks(x), average_ranks(y))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.clip(_direction(x) @ _direction(y), -1, 1))


def _direction(values: np.ndarray) -> np.ndarray:
    """(values - mean) / their norm, without overflow, and exact even if an offset is much larger than the differences.

    Scaling by a power of two does not round, nor does subtracting the first of values that are close to each other. So
    the rounding error of the mean is relative to the differences, not to the offset.
    """
    _, exponent = np.frexp(np.abs(values).max())
    scaled = np.ldexp(values, -exponent)
    shifted = scaled - scaled[0]
    centred = shifted - shifted.mean()
    return centred / np.linalg.norm(centred)


def _check_defined(name: str, x: np.ndarray, y: np.ndarray) -> None:
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"{name} correlation takes two arrays of one length >= 2, not {x.shape} and {y.shape}")
    for place, values in (("first", x), ("second", y)):
        if not np.isfinite(values).all():
            count = f"{(~np.isfinite(values)).sum()} of {len(values)}"
            raise ValueError(f"{name} correlation: {count} values of the {place} input are not finite")
        if (values == values[0]).all():
            raise ValueError(f"{name} correlation is undefined: all {len(values)} values of the {place} input are "
                             f"{values[0]}")
