"""lse_i = log sum_j exp(s_ij), the same of s_ref, and gap_i = sum_j softmax(s_ref_i)_j (s_ref_ij - s_ij), blocked.

For any back end. [b, n] is never formed: two tiles of at most TILE_BYTES of float32 scores are live at a time. With
u = b n D the forward costs 4u FLOPs and the backward 6u. The queue is read in place: padding would copy it. If the
blocks do not divide it, the last one starts early.

Legend: b rows, n queue rows, D embedding width; r rows and c queue rows of a tile.
"""

import jax
import jax.numpy as jnp

from kernels.products import product
from kernels.queue_kl.sums import RowValues, Side, add_tile, finish, no_sums, score_gradient

TILE_BYTES = 8 * 2**20
MAX_ROW_BLOCK = 2048
"""Leaves 1024 queue rows for a tile. With far fewer, the memory traffic of the [r, D] operands limits a product."""


def default_blocks(num_rows: int, num_queue_rows: int) -> tuple[int, int]:
    """(r, c): the rows in equal blocks of at most MAX_ROW_BLOCK, and the queue rows that then fit TILE_BYTES."""
    num_row_blocks = -(-num_rows // MAX_ROW_BLOCK)
    row_block = -(-num_rows // num_row_blocks)
    return row_block, min(num_queue_rows, TILE_BYTES // 4 // row_block)


def forward(
    references: jax.Array,  # [b, D]
    embeddings: jax.Array,  # [b, D]
    queue: jax.Array,  # [n, D]
    *,
    sides: tuple[Side, Side],
    row_block: int | None = None,
    queue_block: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # reference_lse, lse, gap, each [b] float32
    row_block, queue_block = _blocks(references, queue, row_block, queue_block)

    def sums_of_rows(rows):
        references, embeddings = rows

        def add_block(sums, block, left_out):
            reference_scores, scores = _scores(references, embeddings, block, sides)
            return add_tile(sums, reference_scores, scores, left_out, sides)

        sums = _fold_queue(add_block, no_sums(row_block, sides), queue, queue_block)
        return finish(sums)

    results = jax.lax.map(sums_of_rows, _into_row_blocks((references, embeddings), row_block))  # [row_blocks, r, 1]
    return tuple(result.reshape(-1)[:references.shape[0]] for result in results)


def backward(
    references: jax.Array,  # [b, D]
    embeddings: jax.Array,  # [b, D]
    queue: jax.Array,  # [n, D]
    values: RowValues,  # each [b]
    *,
    sides: tuple[Side, Side],
    gradient_dtype: jnp.dtype,
    row_block: int | None = None,
    queue_block: int | None = None,
) -> jax.Array:  # dZ [b, D]
    """dZ = scale dS Q, with dS of sums.score_gradient."""
    row_block, queue_block = _blocks(references, queue, row_block, queue_block)

    def gradient_of_rows(rows):
        references, embeddings, values = rows
        values = RowValues(*(value[:, None] for value in values))

        def add_block(gradient, block, left_out):
            reference_scores, scores = _scores(references, embeddings, block, sides)
            tile = score_gradient(reference_scores, scores, left_out, values)
            return gradient + product(tile.astype(block.dtype), block, (1, 0))

        zeros = jnp.zeros(embeddings.shape, jnp.float32)
        gradient = _fold_queue(add_block, zeros, queue, queue_block)
        return (sides[1].scale * gradient).astype(gradient_dtype)

    gradient = jax.lax.map(gradient_of_rows, _into_row_blocks((references, embeddings, values), row_block))
    return gradient.reshape(-1, embeddings.shape[1])[:embeddings.shape[0]]


def _fold_queue(add_block, carry, queue, block: int):
    """carry = add_block(carry, rows [c, D], left_out [1, c] or None) over all blocks."""
    num_rows = queue.shape[0]

    def step(index, carry):
        first = index * block
        start = jnp.minimum(first, num_rows - block)
        left_out = None
        if num_rows % block:  # rows of the last block that the one before had already
            left_out = (start + jnp.arange(block) < first)[None, :]
        return add_block(carry, jax.lax.dynamic_slice_in_dim(queue, start, block), left_out)

    return jax.lax.fori_loop(0, -(-num_rows // block), step, carry)


def _scores(references, embeddings, block, sides: tuple[Side, Side]):
    """(reference scores, scores), each [r, c] float32."""
    reference, online = sides
    return (reference.scale * product(references, block, (1, 1)),
            online.scale * product(embeddings, block, (1, 1)))


def _blocks(references, queue, row_block: int | None, queue_block: int | None) -> tuple[int, int]:
    """(r, c): as asked for or by default, no larger than the operands."""
    num_rows, num_queue_rows = references.shape[0], queue.shape[0]
    default_row_block, default_queue_block = default_blocks(num_rows, num_queue_rows)
    return min(row_block or default_row_block, num_rows), min(queue_block or default_queue_block, num_queue_rows)


def _into_row_blocks(arrays, block: int):
    """[b, ...] -> [row_blocks, r, ...] for each array of the tree, with rows of zeros appended."""

    def split(array):
        padded = jnp.pad(array, [(0, -array.shape[0] % block)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(-1, block, *array.shape[1:])

    return jax.tree.map(split, arrays)
