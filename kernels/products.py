"""The matrix product that all kernels use, in XLA and in Mosaic."""

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU's vector registers
UNIT_NORM_PRODUCT = 1.01
"""Bound of |<q, k>| of rounded unit vectors: rounded to bfloat16, each has a norm of at most 1 + 2^-8."""


def product(left: jax.Array, right: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """left times right, contracted over one axis of each, accumulated in float32.

    Float32 operands are not rounded to bfloat16.
    """
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())),
                               precision=precision, preferred_element_type=jnp.float32)


def pad_width(operand: jax.Array) -> jax.Array:
    """[n, D] with zeros up to a multiple of 128 lanes: they add nothing to a product over D."""
    return jnp.pad(operand, ((0, 0), (0, -operand.shape[1] % LANES)))
