"""Gradient caching: the exact gradient over a batch whose activations do not fit (Gao et al. 2021, 2101.06983).

Legend: p packing blocks on this device, e of them encoded at a time, T texts per block, D embedding width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data.packing import PackedTexts
from sharding.layout import check_divides


def value_and_grad_in_parts(
    encode: Callable[[Any, PackedTexts, jax.Array], jax.Array],  # (parameters, packed [e, ...], index of first block)
    loss: Callable[[Any, jax.Array], tuple[jax.Array, Any]],  # (parameters, all embeddings [p, T, D])
    parameters: Any,
    packed: PackedTexts,  # [p, ...]
    encode_blocks: int,  # e
) -> tuple[tuple[jax.Array, Any], Any]:
    """value_and_grad(has_aux=True) of loss(parameters, embeddings of all blocks), with the activations of e at a time.

    1. Encode part by part, keeping only the embeddings. 2. Loss and its gradient by the embeddings, once, with all
    their collectives (and by parameters that the loss has of its own). 3. Encode again, part by part, each with its
    share of that gradient, and add up. The forward pass runs twice: 4/3 of the arithmetic. `encode` must give the same
    embeddings both times, dropout included.

    Raises:
      ValueError: e does not divide p.
    """
    embeddings = encode_in_parts(encode, parameters, packed, encode_blocks)
    value, (gradient, cotangents) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, embeddings)

    def add_part(gradient, part_and_cotangent):
        part, (cotangent, _) = part_and_cotangent
        _, pull_back = jax.vjp(lambda parameters: encode(parameters, *part), parameters)
        return jax.tree.map(jnp.add, gradient, *pull_back(cotangent)), None

    with jax.named_scope("encode_with_gradient"):
        parts = split_parts(packed, encode_blocks), split_parts(cotangents, encode_blocks)
        gradient, _ = jax.lax.scan(add_part, gradient, parts)
    return value, gradient


def encode_in_parts(
    encode: Callable[[Any, PackedTexts, jax.Array], jax.Array], parameters: Any, packed: PackedTexts, encode_blocks: int
) -> jax.Array:
    """The embeddings [p, T, D] of the blocks, e at a time; take no gradient of them."""
    with jax.named_scope("encode_without_gradient"):
        embeddings = jax.lax.map(lambda part: encode(parameters, *part), split_parts(packed, encode_blocks))
        return embeddings.reshape(-1, *embeddings.shape[2:])


def split_parts(tree: Any, encode_blocks: int) -> tuple[Any, jax.Array]:
    """A tree of [p, ...] -> that of [p / e, e, ...], and the index of each part's first block."""
    blocks = jax.tree.leaves(tree)[0].shape[0]
    check_divides(blocks, "packing blocks of a device", encode_blocks, "encode_blocks")
    parts = jax.tree.map(lambda x: x.reshape(-1, encode_blocks, *x.shape[1:]), tree)
    return parts, jnp.arange(0, blocks, encode_blocks)
