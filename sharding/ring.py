"""Blocks that go round the ring of devices: each device works on every block, and holds two at a time.

Legend: W devices on the axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sharding.collectives import AxisName


def ring_scan(
    step: Callable[[int, jax.Array, Any, Any, Any], tuple[Any, Any]],
    state: Any,
    blocks: Sequence[Any],
    totals: Sequence[Any],
    axis_name: AxisName,
    order: tuple[int, ...] | None = None,
) -> tuple[Any, list[Any]]:
    """state, totals[k] = step(k, hop, state, blocks[k], totals[k]) for each k, on the blocks of all devices in turn.

    blocks[0] goes on to the next device at each of the W hops; blocks[1], if there is one, to the device before, so
    that both directions of every link carry half of the bytes. At hop h a device has the blocks of the devices h before
    and h behind it; at hop 0 (int32 []) its own. The state stays on the device. totals[k] is what the devices have made
    of a block so far: it follows its block and returns to its owner when all have seen it.

    What is sent during a step does not depend on it, so that the two can overlap: the next block leaves before the
    present one is worked on, and a block's totals arrive while this device works out what it will add to them. For that
    each goes round one hop longer than it must, and `totals` at the start must be the same on all devices (zeros).

    `order` lists the devices along the ring; None: as they are numbered.

    Vectors (arrays of one axis) are int32 or float32, of one length in a block and its totals: they travel together.

    Returns: the state, and the totals of this device's own blocks.
    """
    num_devices = lax.axis_size(axis_name)
    ring = order or tuple(range(num_devices))

    def pass_on(trees):
        ways = [[(device, ring[(place + way) % num_devices]) for place, device in enumerate(ring)] for way in (1, -1)]
        return [_permute(tree, axis_name, way) for tree, way in zip(trees, ways)]

    def one_hop(carry, hop):
        state, blocks, totals = carry
        arriving = pass_on(list(zip(blocks, totals)))
        next_blocks, totals = [block for block, _ in arriving], [total for _, total in arriving]
        for k, block in enumerate(blocks):
            state, totals[k] = step(k, hop, state, block, totals[k])
        return (state, next_blocks, totals), None

    carry = state, list(blocks), list(totals)
    (state, _, totals), _ = lax.scan(one_hop, carry, jnp.arange(num_devices, dtype=jnp.int32))
    return state, pass_on(totals)


def _permute(tree: Any, axis_name: AxisName, way: list[tuple[int, int]]) -> Any:
    """lax.ppermute of a tree, its vectors ([m] int32 or float32) in one message: XLA has five under way on a TPU."""
    leaves, structure = jax.tree.flatten(tree)
    vectors = [index for index, leaf in enumerate(leaves) if leaf.ndim == 1]
    leaves = [leaf if leaf.ndim == 1 else lax.ppermute(leaf, axis_name, way) for leaf in leaves]
    if vectors:
        bits = jnp.stack([lax.bitcast_convert_type(leaves[index], jnp.int32) for index in vectors])
        for index, row in zip(vectors, lax.ppermute(bits, axis_name, way)):
            leaves[index] = lax.bitcast_convert_type(row, leaves[index].dtype)
    return jax.tree.unflatten(structure, leaves)
