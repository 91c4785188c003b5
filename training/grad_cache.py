"""Gradient caching: the exact gradient over a batch whose activations do not fit (Gao et al. 2021, 2101.06983).

Legend: p packing blocks on this device, e of them encoded at a time, T texts a block, d embedding width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data.packing import PackedTexts
from sharding.mesh import check_divides


def value_and_grad_in_parts(
    encode: Callable[[Any, PackedTexts, jax.Array], jax.Array],  # (parameters, packed [e, ...], index of first block)
    loss: Callable[[jax.Array], tuple[jax.Array, Any]],  # of all embeddings [p, T, d], and anything beside it
    parameters: Any,
    packed: PackedTexts,  # [p, ...]
    encode_blocks: int,  # e
) -> tuple[tuple[jax.Array, Any], Any]:
    """value_and_grad(has_aux=True) of loss(embeddings of all blocks), with the activations of e blocks at a time.

    1. Encode part by part, keeping only the embeddings. 2. Loss and its gradient by the embeddings, once, with all
    their collectives. 3. Encode again, part by part, each with its share of that gradient, and add up. Forward passes
    are done twice: 4/3 of the arithmetic. `encode` must give the same embeddings both times, dropout included.

    Raises:
      ValueError: e does not divide p.
    """
    blocks = packed.tokens.shape[0]
    check_divides(blocks, "packing blocks of a device", encode_blocks, "encode_blocks")
    parts = jax.tree.map(lambda x: x.reshape(-1, encode_blocks, *x.shape[1:]), packed)
    firsts = jnp.arange(0, blocks, encode_blocks)
    with jax.named_scope("encode_without_gradient"):
        embeddings = jax.lax.map(lambda part: encode(parameters, *part), (parts, firsts))  # [p / e, e, T, d]
    of_embeddings = jax.value_and_grad(lambda x: loss(x.reshape(blocks, *x.shape[2:])), has_aux=True)
    value, cotangents = of_embeddings(embeddings)

    def add_part(gradient, part_and_cotangent):
        part, cotangent = part_and_cotangent
        _, pull_back = jax.vjp(lambda parameters: encode(parameters, *part), parameters)
        return jax.tree.map(jnp.add, gradient, *pull_back(cotangent)), None

    with jax.named_scope("encode_with_gradient"):
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        gradient, _ = jax.lax.scan(add_part, zeros, ((parts, firsts), cotangents))
    return value, gradient
