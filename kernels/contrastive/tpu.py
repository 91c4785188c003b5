"""row_lse_i = log sum_j exp(s_ij), column_lse_j = log sum_i exp(s_ij), s_ij = scale <q_i, k_j>: Pallas for TPU.

One tile of scores is in VMEM at a time; HBM holds nothing of size [b, N]. With u = b N D, a scheme that recomputes the
scores takes at least 8u FLOPs. This one takes 8u if the float32 dQ of all rows fits into VMEM, else 10u:

  forward    2u  rows outer, columns inner. A row's running maximum and sum stay in VMEM over the inner loop; a column's
                 log-sum-exp over the rows of one row block goes to HBM as [row_blocks, N], combined outside.
  backward   6u  in one pass: keys outer, rows inner. It recomputes the scores; dK of the key block accumulates over the
                 inner loop, dQ of all rows over the whole kernel, and leaves in the last outer step.
             8u  in two passes, 4u each: one kernel runs twice, recomputes the scores and accumulates the gradient of
                 its outer operand over the inner one. Queries outer gives dQ and dscale, keys outer gives dK.

One pass takes 4 b D bytes of VMEM beside the tiles. In bfloat16 of width 768, 31,744 rows fit on v5e and v6e and 12,800
on v5p and tpu7x; more rows go in groups (num_groups). On v3 and v4, with 16 MiB in all, one pass is possible for few
rows only: 1,024 of width 384 (3,072 in float32), and none of width 768. On a device of two cores (v4, v5p) each core
takes half of the keys, and XLA adds their dQ.

A kernel sees an `outer` and an `inner` side. Labels, log-sum-exps and cotangents lie in HBM along the lanes,
[fields, n]: as [n, fields] they would be padded to 128 lanes, 512 bytes per key. Those of the outer side are transposed
on chip.

If the blocks do not divide a size, the last one reaches beyond the end (the overhang). Mosaic may leave anything there,
NaN included. So scores are dropped by index, and the operands of the second products are zeroed, as 0 * NaN is NaN.

Legend: b query rows, N keys, D width (padded to a multiple of 128 lanes); o rows of an outer block, i of an inner one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.blocks import block_of_side, largest_square_block
from kernels.contrastive import tile
from kernels.contrastive.labels import PairLabels, is_left_out, operand_sides
from kernels.products import LANES, pad_width, product

GRANTED_VMEM = 16 * 2**20
"""VMEM of each core that XLA grants a kernel that does not ask for more (all of it on v3 and v4)."""
MIN_GROUP = 4096
"""Fewest rows of a group, if the backward takes one pass in several groups: see num_groups."""


def usable_vmem(granted: int) -> int:
    """VMEM that a kernel can use; Mosaic needs the rest."""
    return granted * 7 // 8


def vmem_bytes(outer_block: int, inner_block: int, width: int, itemsize: int) -> int:
    """VMEM of the backward kernel; the forward needs less. The factors of two are for double buffering.

    Within 20 % of what libtpu reports if a kernel is too large (D = 512 to 2560); register spills are not counted.
    """
    operands = 2 * (outer_block + inner_block) * width * itemsize  # [o, D], [i, D]
    gradient = 2 * outer_block * width * itemsize  # [o, D], written once an outer block
    accumulator = 2 * outer_block * width * 4  # [o, D] float32, and the product that is added to it
    zeroed = inner_block * width * 4  # [i, D] with its overhang zeroed
    fields = 2 * 2 * 8 * (outer_block + inner_block) * 4  # labels and values of both sides, padded to 8 sublanes
    transposed = 2 * outer_block * LANES * 4  # labels and values of the outer side, padded to 128 lanes
    tile = 4 * outer_block * inner_block * 4  # scores, two exponentials, mask or operand-dtype gradient
    split = 0
    if itemsize == 4:  # a float32 product at full precision splits its operands into three bfloat16 parts
        split = 6 * ((outer_block + 2 * inner_block) * width + 2 * outer_block * inner_block)
    return operands + gradient + accumulator + zeroed + fields + transposed + tile + split


def forward(
    queries: jax.Array,  # [b, D]
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
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    queries, keys = pad_width(queries), pad_width(keys)
    rows, key_side = operand_sides(queries, keys, labels)
    o, i = _block(row_block, queries), _block(column_block, keys)
    num_row_blocks = pl.cdiv(num_rows, o)
    of_rows = jax.ShapeDtypeStruct((1, num_rows), jnp.float32), pl.BlockSpec((1, o), lambda row, column: (0, row))
    specs = dict.fromkeys(["row_lse", *tile.RowStatistics._fields], of_rows)
    if columns:
        specs["column_lse"] = (jax.ShapeDtypeStruct((num_row_blocks, 1, num_keys), jnp.float32),
                               pl.BlockSpec((None, 1, i), lambda row, column: (row, 0, column)))
    value = pltpu.VMEM((o, 1), jnp.float32)
    scratch = {"sums": tile.Sums(value if shift is None else None, value),
               "statistics": tile.RowStatistics(value, value)}
    results = _call(
        functools.partial(_forward_kernel, sizes=(num_rows, num_keys), shift=shift), scale.reshape(1, 1), rows,
        key_side, (o, i), specs, scratch, interpret=interpret,
    )
    column_lse = jax.nn.logsumexp(results["column_lse"][:, 0], axis=0) if columns else None
    statistics = tile.RowStatistics(*[results[name][0] for name in tile.RowStatistics._fields])
    return results["row_lse"][0], column_lse, statistics


def backward(
    queries: jax.Array,  # [b, D]
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
    width = queries.shape[1]
    queries, keys = pad_width(queries), pad_width(keys)
    rows, key_side = operand_sides(queries, keys, labels)
    rows["values"] = jnp.stack(row_values)
    if column_values is not None:
        key_side["values"] = jnp.stack(column_values)
    blocks = _block(row_block, queries), _block(column_block, keys)
    scales = jnp.stack([scale, scale * unit]).reshape(1, 2)
    chip = _chip(interpret)
    options = {"scales": scales, "shift": shift, "interpret": interpret}
    groups = num_groups(queries.shape[0], blocks, queries.shape[1], queries.dtype.itemsize, chip.vmem_bytes)
    if groups is None:
        query_gradient, scale_gradient = _outer_gradient(
            rows, key_side, blocks, queries_outer=True, dtype=queries.dtype, **options)
        key_gradient, _ = _outer_gradient(
            key_side, rows, blocks[::-1], queries_outer=False, dtype=key_gradient_dtype, **options)
    else:
        query_gradient, key_gradient, scale_gradient = _gradients_of_groups(
            rows, key_side, blocks, groups, chip=chip, key_dtype=key_gradient_dtype, **options)
    return query_gradient[:, :width], key_gradient[:, :width], unit * scale_gradient


class Chip(NamedTuple):
    """The resources of a device."""

    vmem_bytes: int  # of each core
    num_cores: int  # they share the first axis of a grid


def _chip(interpret: bool) -> Chip:
    """The device that is compiled for; a v5e when interpreted."""
    if interpret:
        return Chip(128 * 2**20, num_cores=1)
    info = pltpu.get_tpu_info()
    return Chip(info.vmem_capacity_bytes, info.num_cores)


def one_pass_vmem_bytes(num_rows: int, blocks: tuple[int, int], width: int, itemsize: int) -> int:
    """VMEM of the backward in one pass. Tiles take up to 13 % over vmem_bytes (D = 384 to 2048); dK may be float32."""
    return vmem_bytes(*blocks, width, itemsize) * 4 // 3 + 4 * width * num_rows


def num_groups(num_rows: int, blocks: tuple[int, int], width: int, itemsize: int, vmem: int) -> int | None:
    """In how many groups of rows the backward takes one pass; None: two passes.

    dQ [rows, D] float32 must fit beside the tiles. With several groups dK is summed over them in float32, which costs
    8 N D bytes of HBM traffic per group and saves 2 N D FLOPs per row of it. That pays from 4 (FLOP/s) / (bytes/s) rows
    on: by the data sheets from 660 rows on v5p to 2250 on v6e. Besides, with fewer than MIN_GROUP rows the sums of dK,
    [N, D], would be large beside the scores, [b, N].
    """
    row_block = blocks[0]
    room = usable_vmem(vmem) - one_pass_vmem_bytes(0, blocks, width, itemsize)
    resident_rows = room // (4 * width) // row_block * row_block
    if resident_rows >= min(num_rows, MIN_GROUP):
        return pl.cdiv(num_rows, resident_rows)
    return None


def _gradients_of_groups(rows, key_side, blocks, groups: int, *, key_dtype, **options):
    """(dQ [b, D], dK [N, D], dscale / unit) of groups of rows, one after the other."""
    row_block = blocks[0]
    group = pl.cdiv(pl.cdiv(rows["operand"].shape[0], row_block), groups) * row_block
    parts = []
    for first in range(0, rows["operand"].shape[0], group):
        of_group = {name: array[first:first + group] if name == "operand" else array[:, first:first + group]
                    for name, array in rows.items()}
        parts.append(_one_pass(
            of_group, key_side, blocks, key_dtype=key_dtype if groups == 1 else jnp.float32, **options))
    query_gradients, key_gradients, scale_gradients = zip(*parts)
    return jnp.concatenate(query_gradients), sum(key_gradients).astype(key_dtype), sum(scale_gradients)


def _one_pass(rows, key_side, blocks, *, scales, shift, chip: Chip, key_dtype, interpret: bool):
    """(dQ [b, D], dK [N, D], dscale / unit): the keys are the outer side."""
    (num_rows, width), num_keys = rows["operand"].shape, key_side["operand"].shape[0]
    i, o = blocks
    row_blocks, key_blocks = _num_blocks(rows, key_side, blocks)
    itemsize = rows["operand"].dtype.itemsize
    cores = min(chip.num_cores, key_blocks)
    grid = cores, pl.cdiv(key_blocks, cores), row_blocks

    def block_index(core, key_step, row_step):
        return jnp.minimum(core * grid[1] + key_step, key_blocks - 1), row_step

    def last_of_rows(core, key_step, row_step):
        """dQ is written in the last outer step. Until then the index stays at its first block, which is not written."""
        return core, jnp.where(key_step == grid[1] - 1, row_step, 0)

    query_dtype = rows["operand"].dtype if cores == 1 else jnp.float32
    specs = {
        "key_gradient": (jax.ShapeDtypeStruct((num_keys, width), key_dtype),
                         pl.BlockSpec((o, width), lambda *step: (block_index(*step)[0], 0))),
        "query_gradient": (jax.ShapeDtypeStruct((cores, num_rows, width), query_dtype),
                           pl.BlockSpec((None, i, width), lambda *step: (*last_of_rows(*step), 0))),
        "scale": (jax.ShapeDtypeStruct((cores, row_blocks, 1, width), jnp.float32),
                  pl.BlockSpec((None, None, 1, width), lambda *step: (*last_of_rows(*step), 0, 0))),
    }
    scratch = {"key_gradient": pltpu.VMEM((o, width), jnp.float32),
               "query_gradient": pltpu.VMEM((row_blocks * i, width), jnp.float32)}
    results = _call(
        functools.partial(_one_pass_kernel, sizes=(num_keys, num_rows), shift=shift), scales, key_side, rows, (o, i),
        specs, scratch, interpret=interpret, grid=grid, block_index=block_index,
        vmem_limit_bytes=max(GRANTED_VMEM, one_pass_vmem_bytes(row_blocks * i, blocks, width, itemsize)),
    )
    query_gradient = jnp.sum(results["query_gradient"], axis=0).astype(rows["operand"].dtype)
    return query_gradient, results["key_gradient"], jnp.sum(results["scale"])


def _outer_gradient(outer, inner, blocks, *, queries_outer: bool, dtype, scales, shift, interpret: bool):
    """(gradient of the outer operand [n, D], dscale / unit or None)."""
    (num_outer, width), num_inner = outer["operand"].shape, inner["operand"].shape[0]
    o = blocks[0]
    specs = {"gradient": (jax.ShapeDtypeStruct((num_outer, width), dtype),
                          pl.BlockSpec((o, width), lambda outer, inner: (outer, 0)))}
    if queries_outer:  # sum_ij dS_ij <q_i, k_j>, summed over the rows of each block but not over D
        specs["scale"] = (jax.ShapeDtypeStruct((pl.cdiv(num_outer, o), 1, width), jnp.float32),
                          pl.BlockSpec((None, 1, width), lambda outer, inner: (outer, 0, 0)))
    results = _call(
        functools.partial(_backward_kernel, sizes=(num_outer, num_inner), shift=shift, queries_outer=queries_outer),
        scales, outer, inner, blocks, specs, {"accumulator": pltpu.VMEM((o, width), jnp.float32)}, interpret=interpret,
    )
    return results["gradient"], jnp.sum(results["scale"]) if queries_outer else None


def _forward_kernel(scales, outer, inner, results, scratch, *, sizes, shift):
    """Tile (row block, column block): queries outer, keys inner."""
    column, shape = pl.program_id(1), scratch["sums"].total.shape

    @pl.when(column == 0)
    def _():
        _write(scratch["sums"], tile.no_sums(shape, shift))
        _write(scratch["statistics"], tile.no_statistics(shape))

    index = pl.program_id(0), column
    scores, left_out = _scores(scales, outer, inner, index, sizes, queries_outer=True)
    if left_out is not None:
        scores = jnp.where(left_out, -jnp.inf, scores)
    terms = tile.terms(scores, shift)
    _write(scratch["sums"], tile.add(_read(scratch["sums"]), terms, axis=1))
    if "column_lse" in results:
        sums = tile.add(tile.no_sums((1, scores.shape[1]), shift), terms, axis=0)
        results["column_lse"][...] = tile.logsumexp(sums, shift)
    overhang = _overhang(index, scores.shape, sizes)
    fields = _pair_fields(outer, inner, index, scores.shape, queries_outer=True)
    inside = None if overhang is None else ~overhang
    _write(scratch["statistics"], tile.add_statistics(_read(scratch["statistics"]), scores, fields, inside))

    @pl.when(column == pl.num_programs(1) - 1)
    def _():
        results["row_lse"][...] = tile.logsumexp(_read(scratch["sums"]), shift).T
        for name, value in _read(scratch["statistics"])._asdict().items():
            results[name][...] = value.T


def _backward_kernel(scales, outer, inner, results, scratch, *, sizes, shift, queries_outer: bool):
    """Tile (outer block, inner block): the gradient of the outer operand accumulates over the inner blocks."""
    inner_index, accumulator = pl.program_id(1), scratch["accumulator"]

    @pl.when(inner_index == 0)
    def _():
        accumulator[...] = jnp.zeros_like(accumulator)

    index = pl.program_id(0), inner_index
    score_gradient = _score_gradient(scales, outer, inner, index, sizes, shift, queries_outer)
    operand = _zero_overhang(inner["operand"][...], inner_index, sizes[1])
    accumulator[...] += product(score_gradient, operand, (1, 0))

    @pl.when(inner_index == pl.num_programs(1) - 1)
    def _():
        results["gradient"][...] = (scales[0, 1] * accumulator[...]).astype(results["gradient"].dtype)
        if queries_outer:
            operand = _zero_overhang(outer["operand"][...], pl.program_id(0), sizes[0]).astype(jnp.float32)
            results["scale"][...] = jnp.sum(accumulator[...] * operand, axis=0, keepdims=True)


def _one_pass_kernel(scales, outer, inner, results, scratch, *, sizes, shift):
    """Tile (core, key block of the core, row block): dK accumulates over the row blocks, dQ over the key blocks."""
    key_step, row_step = pl.program_id(1), pl.program_id(2)
    is_last_key_step, is_last_row_step = key_step == pl.num_programs(1) - 1, row_step == pl.num_programs(2) - 1
    (o, _), (i, _) = outer["operand"].shape, inner["operand"].shape
    key_block = pl.program_id(0) * pl.num_programs(1) + key_step
    key_gradient, query_gradient = scratch["key_gradient"], scratch["query_gradient"]
    rows = pl.ds(pl.multiple_of(row_step * i, i), i)

    @pl.when(row_step == 0)
    def _():
        key_gradient[...] = jnp.zeros_like(key_gradient)

    @pl.when(key_step == 0)
    def _():
        query_gradient[rows, :] = jnp.zeros((i, query_gradient.shape[1]), jnp.float32)

    queries = _zero_overhang(inner["operand"][...], row_step, sizes[1])

    @pl.when(key_block < pl.cdiv(sizes[0], o))  # the last core may have one block fewer
    def _():
        score_gradient = _score_gradient(
            scales, outer, inner, (key_block, row_step), sizes, shift, queries_outer=False)
        keys = _zero_overhang(outer["operand"][...], key_block, sizes[0])
        key_gradient[...] += product(score_gradient, queries, (1, 0))
        query_gradient[rows, :] += product(score_gradient, keys, (0, 0))

        @pl.when(is_last_row_step)
        def _():
            results["key_gradient"][...] = (scales[0, 1] * key_gradient[...]).astype(results["key_gradient"].dtype)

    @pl.when(is_last_key_step)
    def _():
        total = query_gradient[rows, :]
        results["query_gradient"][...] = (scales[0, 1] * total).astype(results["query_gradient"].dtype)
        results["scale"][...] = jnp.sum(total * queries.astype(jnp.float32), axis=0, keepdims=True)


def _score_gradient(scales, outer, inner, index, sizes, shift, queries_outer: bool):
    """dS / unit [o, i] in the operands' dtype, 0 for pairs that are left out."""
    scores, left_out = _scores(scales, outer, inner, index, sizes, queries_outer)
    sides = [_outer_fields(outer["values"])] if "values" in outer else []
    sides += [_inner_fields(inner["values"])] if "values" in inner else []
    score_gradient = tile.score_gradient(scores, sides, shift)
    if left_out is not None:
        score_gradient = jnp.where(left_out, 0.0, score_gradient)
    return score_gradient.astype(outer["operand"].dtype)


def _scores(scales, outer, inner, index, sizes: tuple[int, int], queries_outer: bool):
    """(scores [o, i], whether each is left out [o, i], or None if none can be); index: of the outer and inner block."""
    scores = scales[0, 0] * product(outer["operand"][...], inner["operand"][...], (1, 1))
    left_out = _overhang(index, scores.shape, sizes)
    fields = _pair_fields(outer, inner, index, scores.shape, queries_outer)
    if fields is not None:
        masked = is_left_out(*fields)
        left_out = masked if left_out is None else left_out | masked
    return scores, left_out


def _overhang(index, shape: tuple[int, int], sizes: tuple[int, int]):
    """True beyond the arrays' ends [o, i]; None if the blocks divide the sizes."""
    beyond = [_indices(index, shape, axis) >= sizes[axis] for axis in (0, 1) if sizes[axis] % shape[axis]]
    return functools.reduce(jnp.logical_or, beyond) if beyond else None


def _pair_fields(outer, inner, index, shape: tuple[int, int], queries_outer: bool):
    """The arguments of is_left_out, or None without labels."""
    if "labels" not in outer:
        return None
    outer_fields, inner_fields = _outer_fields(outer["labels"]), _inner_fields(inner["labels"])
    if queries_outer:
        return outer_fields, inner_fields, _indices(index, shape, 1)
    return inner_fields, outer_fields, _indices(index, shape, 0)


def _indices(index, shape: tuple[int, int], axis: int):
    """The index of each element of the tile along an axis of the whole array."""
    return index[axis] * shape[axis] + jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _read(refs):
    return jax.tree.map(lambda ref: ref[...], refs)


def _write(refs, values) -> None:
    for ref, value in zip(jax.tree.leaves(refs), jax.tree.leaves(values), strict=True):
        ref[...] = value


def _inner_fields(fields):
    """The fields of [fields, i] as lane rows [1, i]."""
    return [fields[field:field + 1, :] for field in range(fields.shape[0])]


def _outer_fields(fields):
    """The fields of [fields, o] as sublane columns [o, 1]."""
    transposed = fields[...].T
    return [transposed[:, field:field + 1] for field in range(fields.shape[0])]


def _zero_overhang(operand, block_index, size: int):
    """The block [n, D] with zeros in the rows beyond the array's end."""
    if size % operand.shape[0] == 0:
        return operand
    rows = block_index * operand.shape[0] + jax.lax.broadcasted_iota(jnp.int32, operand.shape, 0)
    return jnp.where(rows < size, operand.astype(jnp.float32), 0.0).astype(operand.dtype)


def _call(kernel, scales, outer, inner, blocks, results, scratch, *, interpret: bool, grid=None, block_index=None,
          vmem_limit_bytes: int | None = None):
    """Runs the kernel over a grid, the first axis in any order; results: {name: (shape, spec)}.

    The grid is (outer blocks, inner blocks), or another one with block_index: step of the grid -> these two.
    """
    o, i = blocks
    if grid is None:
        grid, block_index = _num_blocks(outer, inner, blocks), lambda *step: step

    def specs(side: dict[str, jax.Array], block: int, axis: int):
        fields = {name: pl.BlockSpec((array.shape[0], block), lambda *step: (0, block_index(*step)[axis]))
                  for name, array in side.items()}
        operand = pl.BlockSpec((block, side["operand"].shape[1]), lambda *step: (block_index(*step)[axis], 0))
        return fields | {"operand": operand}

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), specs(outer, o, axis=0), specs(inner, i, axis=1)],
        out_shape={name: shape for name, (shape, _) in results.items()},
        out_specs={name: spec for name, (_, spec) in results.items()},
        scratch_shapes=[scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", *["arbitrary"] * (len(grid) - 1)), vmem_limit_bytes=vmem_limit_bytes),
        interpret=pltpu.InterpretParams() if interpret else False,
    )(scales, outer, inner)


def _num_blocks(outer, inner, blocks: tuple[int, int]) -> tuple[int, int]:
    return pl.cdiv(outer["operand"].shape[0], blocks[0]), pl.cdiv(inner["operand"].shape[0], blocks[1])


def _block(block: int | None, operand: jax.Array) -> int:
    """Whole lanes, as a side is the lanes of one kernel or the other. The default is the largest square that fits.

    That is 512 up to D = 768 in bfloat16, 256 up to D = 896 in float32.
    """
    num_rows, width = operand.shape
    block = block or largest_square_block(
        width, lambda block: vmem_bytes(block, block, width, operand.dtype.itemsize), usable_vmem(GRANTED_VMEM))
    return block_of_side(block, num_rows)
