"""row_lse_i = log sum_j exp(s_ij), column_lse_j = log sum_i exp(s_ij), s_ij = scale <q_i, k_j>: Mosaic GPU for Hopper.

A thread block keeps c keys in shared memory and processes the rows 128 at a time. One warpgroup fetches pieces of the
rows, [128, 64], with TMA into a ring of stages. Two warpgroups multiply 64 rows each (wgmma) and hold their tile of
scores, [64, c], in registers. With u = b N D:

  forward    2u  sums over the keys of a block are reduced within a warp and written as [key_blocks, b]. Sums over rows
                 stay in registers until the last tile, separately for each of a warpgroup's 64 rows, and are written as
                 [2 splits, N]. XLA adds both up.
  backward   6u  a kernel like the forward one recomputes the scores of all rows and a strip of keys and writes their
                 gradient dS, [b, strip] bfloat16. XLA computes the two products, dQ += dS K and dK = dS^T Q.

Loss and gradient cost 8u, the least if scores are recomputed. Beside arguments and results the memory is that of a
strip, at most STRIP_BYTES, a float32 dQ, and 4 b N / c bytes for each sum or statistic of the rows.

This has been interpreted, and compiled for an H200 without one (BUILD.md), but never run on a GPU. The numbers here are
counted, not measured.

Why XLA computes the products of the backward: in one kernel dQ [64, D] float32 would accumulate in registers, with D
split over warpgroups, 256 each. That takes 10u, as dK needs one more pass. At D = 768 a block of 64 rows does 128 FLOPs
for each byte of keys that it reads from L2, which is 6 TB/s at the peak of the tensor cores. Besides, three warpgroups
share a tile of scores: of the 48 keys that fit beside the rows each has 16, and a wgmma of 16 columns takes 2.5 times
as long to read its left operand from shared memory as to multiply. Together these allow little more than half of the
peak. At D = 1024, [64, D] float32 fills all registers. A strip costs 2 bytes per score, written once and read twice:
3 GB at 8192 x 65536.

To try on a GPU: a warpgroup starts its next products only when its sums are done, and only the other warpgroup fills
this gap (128 c exponentials per tile take about a sixth of the time of its products at D = 768). A second accumulator
in the free registers would fill it too. A cluster of two blocks could share the pieces of the rows.

Mosaic's reduction across warps has one buffer in shared memory for all warpgroups, so they take turns at the end.

Legend: b query rows, N keys, D width (padded to a multiple of 128); a tile has 128 rows and c columns, the keys of a
block. A strip is a part of the keys; splits are parts of the row tiles, for different thread blocks.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # plgpu's from jax 0.12 on
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.blocks import check_multiple
from kernels.contrastive import tile
from kernels.contrastive.labels import EMPTY, PairLabels, is_false_negative, is_left_out, operand_sides
from kernels.products import pad_width, product

CONSUMERS = 2  # warpgroups that multiply
WARPGROUP_ROWS = 64  # rows of one wgmma
TILE_ROWS = CONSUMERS * WARPGROUP_ROWS
CHUNK = 64  # of D in a stage: 128 bytes, what TMA and wgmma swizzle
FIELD_SLOTS = 2  # row tiles whose labels and values are in shared memory
SHARED_BYTES = 227 * 1024  # the most that a block may have
REDUCTION_BYTES = 2048  # Mosaic's, for reductions across warps
BARRIER_BYTES = 512  # at most 8 bytes for each of 2 * (stages + 2) + 2 barriers, and alignment
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232  # a thread: 128 * (40 + 2 * 232) of the 65536
MOST_KEYS, MOST_KEYS_UNBOUNDED = 96, 64
"""Most keys of the forward kernel's blocks, chosen so that ptxas spills nothing. With 96 keys a thread holds 48 scores,
48 sums over rows, 48 labels and, without a bound, 48 maxima."""
STRIP_BYTES = 64 * 2**20
"""Bytes of the gradient of scores in memory at a time. At b = 8192 that is 4096 keys. The product that adds to dQ then
does 8192 FLOPs for each 8 bytes of dQ that it reads and writes, twice as many as an H200 needs to be compute-bound."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes to tune on a real chip. Each byte of the rows that is read from L2 does c FLOPs."""

    keys: int  # c, a multiple of 32
    stages: int  # pieces of the rows: one is multiplied, the others are full or being fetched
    processors: int = 132  # of an H100 or H200 SXM; one thread block runs on each


def shared_bytes(blocks: Blocks, width: int, *, gradient: bool) -> int:
    """Shared memory of a block; `gradient`: of the backward kernel, which writes its tile of dS through it."""
    resident = blocks.keys * width * 2  # [D / 64, c, 64]
    rows = blocks.stages * TILE_ROWS * CHUNK * 2
    fields = (FIELD_SLOTS * TILE_ROWS * (3 + 2) + blocks.keys * (2 + 2)) * 4  # labels and values
    score_gradient = TILE_ROWS * blocks.keys * 2 if gradient else 0
    return resident + rows + fields + score_gradient + REDUCTION_BYTES + BARRIER_BYTES


def default_blocks(width: int, *, gradient: bool, most_keys: int = 128) -> Blocks:
    """The most keys that leave room for three or four stages. At D = 768 that is 96 in both kernels."""
    for keys in (128, 96, 64, 32):
        for stages in (4, 3):
            blocks = Blocks(keys, stages)
            if keys <= most_keys and shared_bytes(blocks, width, gradient=gradient) <= SHARED_BYTES:
                return blocks
    raise ValueError(f"width {width} needs {shared_bytes(blocks, width, gradient=gradient)} bytes of shared memory "
                     f"with {blocks.keys} keys, more than {SHARED_BYTES}: use implementation='xla'")


def refusal(width: int, dtype: jnp.dtype) -> str | None:
    """Why these kernels cannot take the operands, or None."""
    if dtype != jnp.bfloat16:
        return f"it takes bfloat16, not {dtype}"
    try:
        default_blocks(width + -width % 128, gradient=True)
    except ValueError as error:
        return str(error)
    return None


def forward(
    queries: jax.Array,  # [b, D] bfloat16
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    *,
    columns: bool,
    shift: float | None,
    row_block: int | None = None,
    column_block: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None, tile.RowStatistics]:  # row_lse [b], column_lse [N] or None, float32
    sizes = queries.shape[0], keys.shape[0]
    rows, key_side = _sides(queries, keys, labels)
    most_keys = MOST_KEYS if shift is not None else MOST_KEYS_UNBOUNDED
    blocks = _blocks(row_block, column_block, rows["operand"].shape[1], gradient=False, most_keys=most_keys)
    num_tiles, num_key_blocks = pl.cdiv(sizes[0], TILE_ROWS), pl.cdiv(sizes[1], blocks.keys)
    splits = row_splits(num_key_blocks, num_tiles, blocks.processors)
    sums = ["total"] if shift is not None else ["maximum", "total"]
    of_rows = jax.ShapeDtypeStruct((num_key_blocks, num_tiles * TILE_ROWS), jnp.float32)
    statistics = tile.RowStatistics._fields[:2 if labels is not None else 1]
    results = {"row": dict.fromkeys(sums, of_rows), "statistics": dict.fromkeys(statistics, of_rows)}
    if columns:
        results["column"] = dict.fromkeys(
            sums, jax.ShapeDtypeStruct((CONSUMERS * splits, num_key_blocks * blocks.keys), jnp.float32))
    found = _call(
        functools.partial(_forward_tiles, num_keys=blocks.keys, sizes=sizes, shift=shift), scale, jnp.int32(0), rows,
        key_side, results, blocks, splits, gradient=False, interpret=interpret,
    )
    row_lse = _combine(found["row"], shift)[:sizes[0]]
    column_lse = _combine(found["column"], shift)[:sizes[1]] if columns else None
    return row_lse, column_lse, _row_statistics(found["statistics"], sizes[0])


def backward(
    queries: jax.Array,  # [b, D] bfloat16
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    unit: jax.Array,  # [] float32
    row_values: tuple[jax.Array, ...],  # of [b]: tile.gradient_values
    column_values: tuple[jax.Array, ...] | None,  # of [N]
    *,
    shift: float | None,
    key_gradient_dtype: jnp.dtype,
    row_block: int | None = None,
    column_block: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # dQ [b, D] in the operands' dtype, dK [N, D], dscale []
    """dS = unit tile.score_gradient; dQ = scale dS K; dK = scale dS^T Q; dscale = sum_ij dS_ij <q_i, k_j>."""
    sizes, width = (queries.shape[0], keys.shape[0]), queries.shape[1]
    rows, key_side = _sides(queries, keys, labels)
    rows["values"] = jnp.stack(row_values)
    if column_values is not None:
        key_side["values"] = jnp.stack(column_values)
    blocks = _blocks(row_block, column_block, rows["operand"].shape[1], gradient=True, most_keys=128)
    num_strips, strip = strips_of_keys(*sizes)
    splits = row_splits(pl.cdiv(strip, blocks.keys), pl.cdiv(sizes[0], TILE_ROWS), blocks.processors)
    written = (b := rows["operand"].shape[0]), strip
    if interpret:  # whole blocks: TMA writes nothing beyond the end, where the interpreter raises
        written = b + -b % TILE_ROWS, strip + -strip % blocks.keys
    results = {"gradient": jax.ShapeDtypeStruct(written, queries.dtype)}

    def step(query_gradient, index_and_strip):
        index, keys_of_strip = index_and_strip
        gradient = _call(
            functools.partial(_gradient_tiles, sizes=sizes, shift=shift), scale, index * strip, rows, keys_of_strip,
            results, blocks, splits, gradient=True, interpret=interpret,
        )["gradient"][:b, :strip]
        query_gradient += product(gradient, keys_of_strip["operand"], (1, 0))
        key_gradient = product(gradient, rows["operand"], (0, 0))
        return query_gradient, (scale * unit * key_gradient).astype(key_gradient_dtype)

    zeros = jnp.zeros(rows["operand"].shape, jnp.float32)
    strips = {name: _into_strips(array, num_strips, strip, axis=0 if name == "operand" else 1)
              for name, array in key_side.items()}
    query_gradient, key_gradient = jax.lax.scan(step, zeros, (jnp.arange(num_strips, dtype=jnp.int32), strips))
    scale_gradient = unit * jnp.sum(query_gradient * rows["operand"].astype(jnp.float32))
    query_gradient = (scale * unit * query_gradient).astype(queries.dtype)
    key_gradient = key_gradient.reshape(-1, key_gradient.shape[-1])
    return query_gradient[:sizes[0], :width], key_gradient[:sizes[1], :width], scale_gradient


def strips_of_keys(num_rows: int, num_keys: int) -> tuple[int, int]:
    """(number of strips, keys of one): the fewest that keep one within STRIP_BYTES; up to twice as many if even."""
    fewest = max(pl.cdiv(2 * num_rows * num_keys, STRIP_BYTES), 1)
    even = [count for count in range(fewest, 2 * fewest + 1) if num_keys % (count * CHUNK) == 0]
    count = even[0] if even else fewest
    return count, pl.cdiv(num_keys, count * CHUNK) * CHUNK


def _into_strips(array, num_strips: int, strip: int, axis: int):
    """[strips, strip, D] of [N, D], or [strips, fields, strip] of [fields, N]."""
    array = _pad(array, axis, num_strips * strip)
    array = array.reshape(*array.shape[:axis], num_strips, strip, *array.shape[axis + 1:])
    return jnp.moveaxis(array, axis, 0)


def row_splits(num_key_blocks: int, num_row_tiles: int, processors: int) -> int:
    """The fewest splits of the shortest time: blocks run in rounds, as long as their tiles and the fetch of their keys.

    Fetching the keys of a block takes about as long as the products of one tile.
    """
    def time(splits):
        return math.ceil(num_key_blocks * splits / processors) * (math.ceil(num_row_tiles / splits) + 1)

    return min(range(1, num_row_tiles + 1), key=time)


def _combine(partial: dict[str, jax.Array], shift: float | None) -> jax.Array:  # of [parts, n] -> [n]
    if shift is not None:
        return tile.logsumexp(tile.Sums(None, jnp.sum(partial["total"], axis=0)), shift)
    return jax.nn.logsumexp(tile.logsumexp(tile.Sums(partial["maximum"], partial["total"]), shift), axis=0)


def _row_statistics(partial: dict[str, jax.Array], num_rows: int) -> tile.RowStatistics:  # of [key_blocks, b] -> [b]
    hardest_negative = jnp.max(partial["hardest_negative"], axis=0)[:num_rows]
    if "num_left_out" not in partial:
        return tile.RowStatistics(hardest_negative, jnp.zeros_like(hardest_negative))
    return tile.RowStatistics(hardest_negative, jnp.sum(partial["num_left_out"], axis=0)[:num_rows])


def _sides(queries, keys, labels: PairLabels | None):
    """labels.operand_sides of operands padded to whole tiles: in shared memory they lie in tiles of 8 x 64."""
    return operand_sides(_pad(pad_width(queries), 0, 8), _pad(pad_width(keys), 0, 8), labels)


def _pad(array, axis: int, multiple: int):
    """Zeros, or EMPTY labels, up to a multiple."""
    padding = [(0, 0)] * array.ndim
    padding[axis] = 0, -array.shape[axis] % multiple
    return jnp.pad(array, padding, constant_values=EMPTY if array.dtype == jnp.int32 else 0)


def _blocks(row_block: int | None, column_block: int | None, width: int, *, gradient: bool, most_keys: int) -> Blocks:
    if row_block not in (None, TILE_ROWS):
        raise ValueError(f"row_block={row_block}: implementation='hopper' has tiles of {TILE_ROWS} rows")
    blocks = default_blocks(width, gradient=gradient, most_keys=most_keys)
    if column_block is None:
        return blocks
    check_multiple(column_block, 32)
    blocks = dataclasses.replace(blocks, keys=column_block)
    if (needed := shared_bytes(blocks, width, gradient=gradient)) > SHARED_BYTES:
        raise ValueError(f"a block of {column_block} keys of width {width} needs {needed} bytes of shared memory, more "
                         f"than {SHARED_BYTES}")
    return blocks


def _call(body, scale, first_key, rows, keys, results, blocks: Blocks, splits: int, *, gradient: bool, interpret: bool):
    """Runs `body` in the multiplying warpgroups of key_blocks x splits thread blocks, each with c keys and some rows.

    first_key: the index of the first key given, [] int32.
    """
    num_tiles, num_key_blocks = pl.cdiv(len(rows["operand"]), TILE_ROWS), pl.cdiv(len(keys["operand"]), blocks.keys)
    rows, keys = _whole_blocks(rows, TILE_ROWS, interpret), _whole_blocks(keys, blocks.keys, interpret)
    if interpret:  # jax 0.10 interprets no transposed view of wgmma's right operand: there the keys lie transposed
        keys |= {"operand": keys["operand"].T}

    def kernel(scale, first_key, rows, keys, results, scratch):
        warpgroup, split = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("split")
        place = _Place(
            warpgroup, jax.lax.axis_index("key_block"), split, first_key[0], jax.lax.div(split * num_tiles, splits),
            jax.lax.div((split + 1) * num_tiles, splits))

        @pl.when(warpgroup == CONSUMERS)
        def _():
            plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
            _produce(place, rows, keys, scratch, interpret)

        @pl.when(warpgroup < CONSUMERS)
        def _():
            plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
            plgpu.barrier_wait(scratch["keys_full"])
            body(place, functools.partial(_each_tile, place, scale[0], scratch, interpret), results, scratch)

    return plgpu.kernel(
        kernel, out_type=results, scratch_types=[_scratch(rows, keys, blocks, gradient, interpret)],
        grid=(num_key_blocks, splits), grid_names=("key_block", "split"),
        num_threads=CONSUMERS + 1, thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, reduction_scratch_bytes=REDUCTION_BYTES,
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=InterpretGPUParams(detect_races=True) if interpret else None,
    )(scale.reshape(1), first_key.reshape(1), rows, keys)


def _whole_blocks(side, block: int, interpret: bool):
    """Fields padded to whole blocks; of operands TMA reads zeros beyond the end, where the interpreter raises."""
    return {name: array if name == "operand" and not interpret else _pad(array, 0 if name == "operand" else 1, block)
            for name, array in side.items()}


class _Place(NamedTuple):
    """The part of the work that a warpgroup does; int32 scalars."""

    warpgroup: jax.Array
    block: jax.Array  # of keys
    split: jax.Array
    first_key: jax.Array  # the index of the first key of all blocks
    first_tile: jax.Array  # of rows
    end_tile: jax.Array


class _Tile(NamedTuple):
    """A warpgroup's tile of 64 rows and c keys; all except first_row are [64, c]."""

    first_row: jax.Array  # []
    scores: jax.Array
    columns: jax.Array  # the index of the key
    pair_fields: tuple | None  # the arguments of is_left_out
    sides: list[tuple[jax.Array, ...]]  # tile.gradient_values


def _scratch(rows, keys, blocks: Blocks, gradient: bool, interpret: bool) -> dict:
    """Shared memory and barriers of a thread block; shared_bytes adds them up."""
    width, dtype = rows["operand"].shape[-1], rows["operand"].dtype
    chunks = width // CHUNK
    swizzled = plgpu.TilingTransform((8, CHUNK)), plgpu.SwizzleTransform(2 * CHUNK)

    def fields(side, *shape):
        return {name: plgpu.SMEM((*shape[:-1], array.shape[0], shape[-1]), array.dtype)
                for name, array in side.items() if name != "operand"}

    scratch = {
        "keys": plgpu.SMEM((chunks, CHUNK, blocks.keys), dtype) if interpret else
        plgpu.SMEM((chunks, blocks.keys, CHUNK), dtype, transforms=swizzled),
        "keys_full": plgpu.Barrier(num_arrivals=chunks + len(keys) - 1),
        "key_fields": fields(keys, blocks.keys),
        "rows": plgpu.SMEM((blocks.stages, TILE_ROWS, CHUNK), dtype, transforms=swizzled),
        "rows_full": plgpu.Barrier(num_barriers=blocks.stages),
        "rows_read": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=blocks.stages),
        "row_fields": fields(rows, FIELD_SLOTS, TILE_ROWS),
        "turn": plgpu.Barrier(),
    }
    if len(rows) > 1:
        scratch["fields_full"] = plgpu.Barrier(num_arrivals=len(rows) - 1, num_barriers=FIELD_SLOTS)
        scratch["fields_read"] = plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=FIELD_SLOTS)
    if gradient:
        swizzle = plgpu.find_swizzle(16 * blocks.keys)
        scratch["gradient"] = plgpu.SMEM(
            (CONSUMERS, WARPGROUP_ROWS, blocks.keys), dtype,
            transforms=(plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)))
    return scratch


def _produce(place: _Place, rows, keys, scratch, transposed: bool) -> None:
    """Fetches the keys of the block, then the fields and the pieces of each row tile as soon as there is room."""
    chunks, num_tiles = scratch["keys"].shape[0], place.end_tile - place.first_tile
    num_keys = scratch["keys"].shape[2 if transposed else 1]
    own_keys = pl.ds(place.block * num_keys, num_keys)
    for name, buffer in scratch["key_fields"].items():
        plgpu.copy_gmem_to_smem(keys[name].at[:, own_keys], buffer, scratch["keys_full"])

    @pl.loop(0, chunks)
    def _(chunk):
        of_width = pl.ds(chunk * CHUNK, CHUNK)
        piece = keys["operand"].at[of_width, own_keys] if transposed else keys["operand"].at[own_keys, of_width]
        plgpu.copy_gmem_to_smem(piece, scratch["keys"].at[chunk], scratch["keys_full"])

    @pl.loop(0, num_tiles)
    def _(tile_index):
        own_rows = pl.ds((place.first_tile + tile_index) * TILE_ROWS, TILE_ROWS)
        if scratch["row_fields"]:
            slot = _free_slot(scratch["fields_read"], tile_index)
            for name, buffer in scratch["row_fields"].items():
                plgpu.copy_gmem_to_smem(rows[name].at[:, own_rows], buffer.at[slot], scratch["fields_full"].at[slot])

        @pl.loop(0, chunks)
        def _(chunk):
            slot = _free_slot(scratch["rows_read"], tile_index * chunks + chunk)
            piece = rows["operand"].at[own_rows, pl.ds(chunk * CHUNK, CHUNK)]
            plgpu.copy_gmem_to_smem(piece, scratch["rows"].at[slot], scratch["rows_full"].at[slot])

    _await_reads(scratch["rows_read"], num_tiles * chunks)
    if scratch["row_fields"]:
        _await_reads(scratch["fields_read"], num_tiles)


def _free_slot(read, step):
    """The slot of this step in a ring of slots, once all have read what it holds."""
    slots = read.shape[0]
    slot = jax.lax.rem(step, slots)

    @pl.when(step >= slots)
    def _():
        plgpu.barrier_wait(read.at[slot])

    return slot


def _await_reads(read, steps) -> None:
    """Waits for the reads of the last steps: no arrival at a barrier may stay unawaited."""
    slots = read.shape[0]

    @pl.loop(jnp.maximum(steps - slots, 0), steps)
    def _(step):
        plgpu.barrier_wait(read.at[jax.lax.rem(step, slots)])


def _each_tile(place: _Place, scale, scratch, transposed: bool, step, carry):
    """carry = step(_Tile, carry) for each row tile of the thread block, in the multiplying warpgroups."""
    chunks, stages = scratch["keys"].shape[0], scratch["rows"].shape[0]
    shape = WARPGROUP_ROWS, scratch["keys"].shape[2 if transposed else 1]
    own_rows = pl.ds(place.warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS)

    def products(accumulator, tile_index):
        @pl.loop(0, chunks)
        def _(chunk):
            stage = jax.lax.rem(tile_index * chunks + chunk, stages)
            right = scratch["keys"].at[chunk]
            plgpu.barrier_wait(scratch["rows_full"].at[stage])
            plgpu.wgmma(accumulator, scratch["rows"].at[stage, own_rows],
                        right if transposed else right.transpose((1, 0)))
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(scratch["rows_read"].at[stage])

        return accumulator[...]

    def fields(side, axis, *index):
        """{name: [field [64, c], ...]}"""
        return {name: [jax.lax.broadcast_in_dim(buffer[(*index[:1], field, *index[1:])], shape, (axis,))
                       for field in range(buffer.shape[len(index[:1])])] for name, buffer in side.items()}

    def tile_step(tile_index, carry):
        scores = scale * pl.run_scoped(
            functools.partial(products, tile_index=tile_index), plgpu.ACC(shape, jnp.float32))
        row_fields, key_fields = {}, fields(scratch["key_fields"], 1)
        if scratch["row_fields"]:
            slot = jax.lax.rem(tile_index, FIELD_SLOTS)
            plgpu.barrier_wait(scratch["fields_full"].at[slot])
            row_fields = fields(scratch["row_fields"], 0, slot, own_rows)
            plgpu.commit_smem()  # orders these reads before TMA's next write
            plgpu.barrier_arrive(scratch["fields_read"].at[slot])
        columns = place.first_key + place.block * shape[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        pair_fields = (row_fields["labels"], key_fields["labels"], columns) if "labels" in row_fields else None
        sides = [tuple(side["values"]) for side in (row_fields, key_fields) if "values" in side]
        first_row = (place.first_tile + tile_index) * TILE_ROWS + place.warpgroup * WARPGROUP_ROWS
        return step(_Tile(first_row, scores, columns, pair_fields, sides), carry)

    return jax.lax.fori_loop(0, place.end_tile - place.first_tile, tile_step, carry)


def _forward_tiles(place: _Place, each_tile, results, scratch, *, num_keys: int, sizes, shift) -> None:
    """The sums of each row tile over the keys, and of each key over the rows of this warpgroup."""
    shape = WARPGROUP_ROWS, num_keys

    def step(pairs: _Tile, column_sums):
        scores, own_rows = _scores(pairs, sizes), pl.ds(pairs.first_row, WARPGROUP_ROWS)
        sums = tile.Sums(None, tile.terms(scores, shift)) if shift is not None else tile.Sums(scores, jnp.ones(shape))
        for name, value in _reduce(sums, axis=1).items():
            results["row"][name][place.block, own_rows] = value
        for name, value in _statistics(scores, pairs.pair_fields).items():
            results["statistics"][name][place.block, own_rows] = value
        return None if column_sums is None else tile.merge(column_sums, sums)

    column_sums = each_tile(step, tile.no_sums(shape, shift) if "column" in results else None)
    if column_sums is None:
        return

    @pl.when(place.warpgroup > 0)
    def _():
        plgpu.barrier_wait(scratch["turn"])

    own_keys = pl.ds(place.block * shape[1], shape[1])
    for name, value in _reduce(column_sums, axis=0).items():
        results["column"][name][place.split * CONSUMERS + place.warpgroup, own_keys] = value

    @pl.when(place.warpgroup == 0)
    def _():
        plgpu.barrier_arrive(scratch["turn"])


def _gradient_tiles(place: _Place, each_tile, results, scratch, *, sizes, shift) -> None:
    """dS / unit of each tile, in the operands' dtype."""
    tile_out = scratch["gradient"].at[place.warpgroup]

    def step(pairs: _Tile, carry):
        # A row or key beyond the ends is zero, and so is its part of dQ and dK whatever finite number dS is there.
        scores = pairs.scores if shift is not None and pairs.pair_fields is None else _scores(pairs, sizes)
        gradient = tile.score_gradient(scores, pairs.sides, shift)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        tile_out[...] = gradient.astype(tile_out.dtype)
        plgpu.commit_smem()
        own_rows = pl.ds(pairs.first_row, WARPGROUP_ROWS)
        own_keys = pl.ds(place.block * tile_out.shape[1], tile_out.shape[1])
        plgpu.copy_smem_to_gmem(tile_out, results["gradient"].at[own_rows, own_keys])
        return carry

    each_tile(step, None)
    plgpu.wait_smem_to_gmem(0)


def _scores(pairs: _Tile, sizes: tuple[int, int]) -> jax.Array:  # [64, c], -inf for pairs that are left out
    if pairs.pair_fields is not None:  # what is beyond the ends has the label EMPTY
        return jnp.where(is_left_out(*pairs.pair_fields), -jnp.inf, pairs.scores)
    scores, (num_rows, num_keys) = pairs.scores, sizes
    if num_keys % scores.shape[1]:
        scores = jnp.where(pairs.columns < num_keys, scores, -jnp.inf)
    if num_rows % TILE_ROWS:
        rows = pairs.first_row + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        scores = jnp.where(rows < num_rows, scores, -jnp.inf)
    return scores


def _statistics(scores, pair_fields) -> dict[str, jax.Array]:  # of [64]
    if pair_fields is None:
        return {"hardest_negative": jnp.max(scores, axis=1)}
    row_fields, _, columns = pair_fields
    negatives = jnp.where(columns == row_fields[2], -jnp.inf, scores)
    return {"hardest_negative": jnp.max(negatives, axis=1),
            "num_left_out": jnp.sum(jnp.where(is_false_negative(*pair_fields), 1.0, 0.0), axis=1)}


def _reduce(sums: tile.Sums, axis: int) -> dict[str, jax.Array]:
    """The fields of the sums [64, c] along an axis."""
    if sums.maximum is None:
        return {"total": jnp.sum(sums.total, axis=axis)}
    maximum = jnp.max(sums.maximum, axis=axis)
    shift = jax.lax.broadcast_in_dim(tile.finite(maximum), sums.total.shape, (1 - axis,))
    return {"maximum": maximum, "total": jnp.sum(sums.total * jnp.exp(sums.maximum - shift), axis=axis)}
