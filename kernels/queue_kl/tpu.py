"""lse_i = log sum_j exp(s_ij), the same of s_ref, and gap_i = sum_j softmax(s_ref_i)_j (s_ref_ij - s_ij), for TPU.

In Pallas. One tile of scores of each side lives in VMEM at a time; HBM holds nothing of size [b, n]. With u = b n D:

  forward    4u  rows outer, queue inner. The five sums of a row stay in VMEM over the inner loop.
  backward   6u  the same grid: it recomputes the scores and accumulates dZ over the queue.

The queue is read from HBM once per row block, for both sides.
The values of the rows for the backward pass lie in HBM along the lanes, [fields, b], and are transposed on chip.

If the blocks do not divide a size, the last one reaches beyond the end. Mosaic may leave anything there, NaN included.
Queue rows beyond the end are dropped by index, and zeroed before the second product, as 0 * NaN is NaN. Batch rows
beyond the end affect only themselves, and are not written.

Legend: b rows, n queue rows, D embedding width (padded to a multiple of 128 lanes); o rows and i queue rows of a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.blocks import block_of_side, largest_square_block
from kernels.products import LANES, pad_width, product
from kernels.queue_kl.sums import RowValues, Side, Sums, add_tile, finish, no_sums, score_gradient

VMEM_BYTES = 14 * 2**20
"""Of the 16 MiB that XLA grants a kernel on v3 to v5p without a flag (the rest is Mosaic's own)."""


def vmem_bytes(block: int, width: int, itemsize: int) -> int:
    """VMEM of the larger kernel, the backward, in square tiles. The factors of two are for double buffering.

    9 to 37 % above what libtpu reports if a kernel is too large (float32, D = 128 to 1024).
    """
    operands = 2 * 4 * block * width * itemsize  # rows and queue rows of both sides
    gradient = 2 * block * width * 4  # [o, D], written once per row block; float32 if it is summed over devices
    accumulator = 2 * block * width * 4  # [o, D] float32, and the product that is added to it
    zeroed = block * width * 4  # [i, D] with its overhang zeroed
    columns = 5 * block * LANES * 4  # the sums, or the values of the rows: [o, 1] is padded to 128 lanes
    tile = block * block * itemsize  # the gradient of the scores; intermediate values stay in registers
    split = 0
    if itemsize == 4:  # a float32 product at full precision splits its operands into three bfloat16 parts
        split = 6 * (5 * block * width + block * block)
    return operands + gradient + accumulator + zeroed + columns + tile + split


def forward(
    references: jax.Array,  # [b, D]
    embeddings: jax.Array,  # [b, D]
    queue: jax.Array,  # [n, D]
    *,
    sides: tuple[Side, Side],
    row_block: int | None = None,
    queue_block: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # reference_lse, lse, gap, each [b] float32
    num_rows = references.shape[0]
    rows, queues = _sides(references, embeddings, queue)
    o, _ = blocks = _blocks(row_block, queue_block, rows, queues)
    names = ("reference_lse", "lse", "gap")
    results = _call(
        functools.partial(_forward_kernel, sides=sides, num_queue_rows=queue.shape[0]),
        rows, queues, blocks,
        out_shape={name: jax.ShapeDtypeStruct((1, num_rows), jnp.float32) for name in names},
        out_specs={name: pl.BlockSpec((1, o), lambda row, column: (0, row)) for name in names},
        scratch=Sums(*[pltpu.VMEM((o, 1), jnp.float32) for _ in Sums._fields]), interpret=interpret,
    )
    return tuple(results[name][0] for name in names)


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
    interpret: bool = False,
) -> jax.Array:  # dZ [b, D]
    """dZ = scale dS Q, with dS of sums.score_gradient."""
    rows, queues = _sides(references, embeddings, queue)
    o, _ = blocks = _blocks(row_block, queue_block, rows, queues)
    padded = rows["embeddings"]
    rows["values"] = jnp.stack(values)
    gradient = _call(
        functools.partial(_backward_kernel, sides=sides, num_queue_rows=queue.shape[0]),
        rows, queues, blocks,
        out_shape=jax.ShapeDtypeStruct(padded.shape, gradient_dtype),
        out_specs=pl.BlockSpec((o, padded.shape[1]), lambda row, column: (row, 0)),
        scratch=pltpu.VMEM((o, padded.shape[1]), jnp.float32), interpret=interpret,
    )
    return gradient[:, :embeddings.shape[1]]


def _forward_kernel(rows, queues, results, scratch: Sums, *, sides, num_queue_rows: int):
    """Tile (row block, queue block)."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        _store(scratch, no_sums(scratch.total.shape[0], sides))

    reference_scores, scores = _scores(rows, queues, sides)
    left_out = _left_out(num_queue_rows, scores.shape)
    _store(scratch, add_tile(Sums(*(field[...] for field in scratch)), reference_scores, scores, left_out, sides))

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        reference_lse, lse, gap = finish(Sums(*(field[...] for field in scratch)))
        results["reference_lse"][...] = reference_lse.T
        results["lse"][...] = lse.T
        results["gap"][...] = gap.T


def _backward_kernel(rows, queues, gradient, accumulator, *, sides, num_queue_rows: int):
    """Tile (row block, queue block): dZ accumulates over the queue."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        accumulator[...] = jnp.zeros_like(accumulator)

    reference_scores, scores = _scores(rows, queues, sides)
    left_out = _left_out(num_queue_rows, scores.shape)
    values = rows["values"][...].T  # [o, fields]
    values = RowValues(*(values[:, field:field + 1] for field in range(len(RowValues._fields))))
    tile = score_gradient(reference_scores, scores, left_out, values)
    block = queues["queue"][...]
    if left_out is not None:
        beyond = _left_out(num_queue_rows, block.shape, axis=0)
        block = jnp.where(beyond, 0.0, block.astype(jnp.float32)).astype(block.dtype)
    accumulator[...] += product(tile.astype(block.dtype), block, (1, 0))

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        gradient[...] = (sides[1].scale * accumulator[...]).astype(gradient.dtype)


def _store(scratch: Sums, sums: Sums) -> None:
    for field, value in zip(scratch, sums):
        field[...] = value


def _scores(rows, queues, sides: tuple[Side, Side]):
    """(reference scores, scores), each [o, i] float32."""
    reference, online = sides
    block = queues["queue"][...]
    return (reference.scale * product(rows["references"][...], block, (1, 1)),
            online.scale * product(rows["embeddings"][...], block, (1, 1)))


def _left_out(num_queue_rows: int, shape: tuple[int, int], axis: int = 1):
    """Whether each queue row, along an axis of the shape, is beyond the end; None if the blocks divide the queue."""
    if num_queue_rows % shape[axis] == 0:
        return None
    return pl.program_id(1) * shape[axis] + jax.lax.broadcasted_iota(jnp.int32, shape, axis) >= num_queue_rows


def _call(kernel, rows, queues, blocks, *, out_shape, out_specs, scratch, interpret: bool):
    """Runs the kernel over (row blocks, queue blocks), the queue blocks in order."""
    o, i = blocks
    num_rows, num_queue_rows = rows["embeddings"].shape[0], queues["queue"].shape[0]
    row_specs = {name: pl.BlockSpec((o, array.shape[1]), lambda row, column: (row, 0)) for name, array in rows.items()}
    if "values" in rows:
        row_specs["values"] = pl.BlockSpec((rows["values"].shape[0], o), lambda row, column: (0, row))
    queue_specs = {name: pl.BlockSpec((i, array.shape[1]), lambda row, column: (column, 0))
                   for name, array in queues.items()}
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(num_rows, o), pl.cdiv(num_queue_rows, i)),
        in_specs=[row_specs, queue_specs],
        out_shape=out_shape, out_specs=out_specs, scratch_shapes=[scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=pltpu.InterpretParams() if interpret else False,
    )(rows, queues)


def _sides(references, embeddings, queue) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(the batch's operands, the queues), padded to whole lanes."""
    rows = {"references": pad_width(references), "embeddings": pad_width(embeddings)}
    return rows, {"queue": pad_width(queue)}


def _blocks(row_block: int | None, queue_block: int | None, rows, queues) -> tuple[int, int]:
    """(o, i): whole lanes, o of the results and i of the scores. The default is the largest square that fits.

    That is 512 up to D = 768 in bfloat16 and up to D = 256 in float32.
    """
    (num_rows, width), itemsize = rows["embeddings"].shape, rows["embeddings"].dtype.itemsize
    if row_block is None or queue_block is None:
        default = largest_square_block(width, lambda block: vmem_bytes(block, width, itemsize), VMEM_BYTES)
        row_block, queue_block = row_block or default, queue_block or default
    return block_of_side(row_block, num_rows), block_of_side(queue_block, queues["queue"].shape[0])
