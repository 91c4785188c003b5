"""row_lse_i = log sum_j exp(s_ij), column_lse_j = log sum_i exp(s_ij), s_ij = scale <q_i, k_j>: Pallas for TPU.

One tile of scores lives in VMEM at a time; HBM holds nothing of size [b, N]. With u = b N D:

  forward    2u  rows outer, columns inner. A row's running maximum and sum stay in VMEM over the inner loop; a column's
                 log-sum-exp over the rows of one row block goes to HBM as [R, N] and is combined outside.
  backward   8u  one kernel run twice, 4u each: it recomputes the scores and accumulates the gradient of its outer
                 operand over the inner one. Queries outer gives dQ and dscale, keys outer gives dK.

A kernel sees an `outer` and an `inner` side. Labels, log-sum-exps and cotangents lie in HBM along the lanes,
[fields, n]: as [n, fields] they would be padded to 128 lanes, 512 bytes a key. The outer side's are transposed on chip.

Blocks overhang where they do not divide a size. Mosaic leaves anything there, NaN included: scores are dropped by
index, and the inner operand of the second product is zeroed, since 0 * NaN is NaN.

Legend: b query rows, N keys, D width (padded to a multiple of 128 lanes); o rows of an outer block, i of an inner one;
R row blocks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.contrastive import tile
from kernels.contrastive.labels import PairLabels, is_left_out
from kernels.products import LANES, pad_width, product

VMEM_BYTES = 14 * 2**20
"""Of the 16 MiB that XLA grants a kernel on v3 to v5p without a flag (the rest is Mosaic's own)."""


def vmem_bytes(outer_block: int, inner_block: int, width: int, itemsize: int) -> int:
    """VMEM of the backward kernel; the forward needs less. Blocks are double-buffered: hence the factors of two.

    Within 20 % of what libtpu reports where a kernel is too large (D = 512 to 2560); register spills are not counted.
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


def default_block(width: int, itemsize: int) -> int:
    """The largest square tile that fits: 512 up to D = 768 in bfloat16, 256 up to D = 896 in float32."""
    for block in (512, 256, 128):
        if vmem_bytes(block, block, width, itemsize) <= VMEM_BYTES:
            return block
    raise ValueError(f"width {width} needs {vmem_bytes(128, 128, width, itemsize)} bytes of VMEM in tiles of 128 x 128,"
                     f" more than {VMEM_BYTES}: use implementation='xla'")


def forward(
    queries: jax.Array,  # [b, D]
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    *,
    columns: bool,
    statistics: bool,
    shift: float | None,
    row_block: int | None = None,
    column_block: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None, tile.RowStatistics | None]:  # row_lse [b], column_lse [N] or None, float32
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    queries, keys = pad_width(queries), pad_width(keys)
    rows, key_side = _sides(queries, keys, labels)
    o, i = _block(row_block, queries), _block(column_block, keys)
    num_row_blocks = pl.cdiv(num_rows, o)
    of_rows = jax.ShapeDtypeStruct((1, num_rows), jnp.float32), pl.BlockSpec((1, o), lambda row, column: (0, row))
    specs = {"row_lse": of_rows}
    if columns:
        specs["column_lse"] = (jax.ShapeDtypeStruct((num_row_blocks, 1, num_keys), jnp.float32),
                               pl.BlockSpec((None, 1, i), lambda row, column: (row, 0, column)))
    value = pltpu.VMEM((o, 1), jnp.float32)
    scratch = {"sums": tile.Sums(value if shift is None else None, value)}
    if statistics:
        specs |= dict.fromkeys(tile.RowStatistics._fields, of_rows)
        scratch["statistics"] = tile.RowStatistics(value, value)
    results = _call(
        functools.partial(_forward_kernel, sizes=(num_rows, num_keys), shift=shift), scale.reshape(1, 1), rows,
        key_side, (o, i), specs, scratch, interpret=interpret,
    )
    column_lse = jax.nn.logsumexp(results["column_lse"][:, 0], axis=0) if columns else None
    found = tile.RowStatistics(*[results[name][0] for name in tile.RowStatistics._fields]) if statistics else None
    return results["row_lse"][0], column_lse, found


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
    row_block: int | None = None,
    column_block: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # dQ [b, D], dK [N, D] in the operands' dtype, dscale []
    """dS = unit tile.score_gradient; dQ = scale dS K; dK = scale dS^T Q; dscale = sum_ij dS_ij <q_i, k_j>."""
    width = queries.shape[1]
    queries, keys = pad_width(queries), pad_width(keys)
    rows, key_side = _sides(queries, keys, labels)
    rows["values"] = jnp.stack(row_values)
    if column_values is not None:
        key_side["values"] = jnp.stack(column_values)
    blocks = _block(row_block, queries), _block(column_block, keys)
    scales = jnp.stack([scale, scale * unit]).reshape(1, 2)
    run = functools.partial(_outer_gradient, scales=scales, shift=shift, interpret=interpret)
    query_gradient, scale_gradient = run(rows, key_side, blocks, queries_outer=True)
    key_gradient, _ = run(key_side, rows, blocks[::-1], queries_outer=False)
    return query_gradient[:, :width], key_gradient[:, :width], unit * scale_gradient


def _outer_gradient(outer, inner, blocks, *, queries_outer: bool, scales, shift, interpret: bool):
    """(gradient of the outer operand [n, D], dscale / unit or None)."""
    (num_outer, width), num_inner = outer["operand"].shape, inner["operand"].shape[0]
    o = blocks[0]
    specs = {"gradient": (jax.ShapeDtypeStruct((num_outer, width), outer["operand"].dtype),
                          pl.BlockSpec((o, width), lambda outer, inner: (outer, 0)))}
    if queries_outer:  # sum_ij dS_ij <q_i, k_j>, over the rows of each block and not yet over D
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
        if "statistics" in scratch:
            _write(scratch["statistics"], tile.no_statistics(shape))

    scores, left_out = _scores(scales, outer, inner, sizes, queries_outer=True)
    if left_out is not None:
        scores = jnp.where(left_out, -jnp.inf, scores)
    terms = tile.terms(scores, shift)
    _write(scratch["sums"], tile.add(_read(scratch["sums"]), terms, axis=1))
    if "column_lse" in results:
        sums = tile.add(tile.no_sums((1, scores.shape[1]), shift), terms, axis=0)
        results["column_lse"][...] = tile.logsumexp(sums, shift)
    if "statistics" in scratch:
        overhang, fields = _overhang(scores.shape, sizes), _pair_fields(outer, inner, scores.shape, queries_outer=True)
        inside = None if overhang is None else ~overhang
        _write(scratch["statistics"], tile.add_statistics(_read(scratch["statistics"]), scores, fields, inside))

    @pl.when(column == pl.num_programs(1) - 1)
    def _():
        results["row_lse"][...] = tile.logsumexp(_read(scratch["sums"]), shift).T
        if "statistics" in scratch:
            for name, value in _read(scratch["statistics"])._asdict().items():
                results[name][...] = value.T


def _backward_kernel(scales, outer, inner, results, scratch, *, sizes, shift, queries_outer: bool):
    """Tile (outer block, inner block): the gradient of the outer operand accumulates over the inner blocks."""
    inner_index, accumulator = pl.program_id(1), scratch["accumulator"]

    @pl.when(inner_index == 0)
    def _():
        accumulator[...] = jnp.zeros_like(accumulator)

    scores, left_out = _scores(scales, outer, inner, sizes, queries_outer)
    sides = [_outer_fields(outer["values"])] if "values" in outer else []
    sides += [_inner_fields(inner["values"])] if "values" in inner else []
    score_gradient = tile.score_gradient(scores, sides, shift)
    if left_out is not None:
        score_gradient = jnp.where(left_out, 0.0, score_gradient)
    operand = _zero_overhang(inner["operand"][...], inner_index, sizes[1])
    accumulator[...] += product(score_gradient.astype(operand.dtype), operand, (1, 0))

    @pl.when(inner_index == pl.num_programs(1) - 1)
    def _():
        results["gradient"][...] = (scales[0, 1] * accumulator[...]).astype(results["gradient"].dtype)
        if queries_outer:
            operand = _zero_overhang(outer["operand"][...], pl.program_id(0), sizes[0]).astype(jnp.float32)
            results["scale"][...] = jnp.sum(accumulator[...] * operand, axis=0, keepdims=True)


def _scores(scales, outer, inner, sizes: tuple[int, int], queries_outer: bool):
    """(scores [o, i], whether each is left out [o, i] or None where none can be)."""
    scores = scales[0, 0] * product(outer["operand"][...], inner["operand"][...], (1, 1))
    left_out, fields = _overhang(scores.shape, sizes), _pair_fields(outer, inner, scores.shape, queries_outer)
    if fields is not None:
        masked = is_left_out(*fields)
        left_out = masked if left_out is None else left_out | masked
    return scores, left_out


def _overhang(shape: tuple[int, int], sizes: tuple[int, int]):
    """True beyond the arrays' ends [o, i]; None where the blocks divide the sizes."""
    beyond = [_indices(shape, axis) >= sizes[axis] for axis in (0, 1) if sizes[axis] % shape[axis]]
    return functools.reduce(jnp.logical_or, beyond) if beyond else None


def _pair_fields(outer, inner, shape: tuple[int, int], queries_outer: bool):
    """The arguments of is_left_out, or None without labels."""
    if "labels" not in outer:
        return None
    outer_fields, inner_fields = _outer_fields(outer["labels"]), _inner_fields(inner["labels"])
    if queries_outer:
        return outer_fields, inner_fields, _indices(shape, 1)
    return inner_fields, outer_fields, _indices(shape, 0)


def _indices(shape: tuple[int, int], axis: int):
    """The index along an axis of the whole array, of each element of the tile."""
    return pl.program_id(axis) * shape[axis] + jax.lax.broadcasted_iota(jnp.int32, shape, axis)


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


def _call(kernel, scales, outer, inner, blocks, results, scratch, *, interpret: bool):
    """Runs the kernel over (outer blocks, inner blocks), the inner ones in order; results: {name: (shape, spec)}."""
    o, i = blocks

    def specs(side: dict[str, jax.Array], block: int, axis: int):
        fields = {name: pl.BlockSpec((array.shape[0], block), lambda *index: (0, index[axis]))
                  for name, array in side.items()}
        operand = pl.BlockSpec((block, side["operand"].shape[1]), lambda *index: (index[axis], 0))
        return fields | {"operand": operand}

    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(outer["operand"].shape[0], o), pl.cdiv(inner["operand"].shape[0], i)),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), specs(outer, o, axis=0), specs(inner, i, axis=1)],
        out_shape={name: shape for name, (shape, _) in results.items()},
        out_specs={name: spec for name, (_, spec) in results.items()},
        scratch_shapes=[scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=pltpu.InterpretParams() if interpret else False,
    )(scales, outer, inner)


def _sides(queries, keys, labels: PairLabels | None):
    """The operand [n, D] of each side, and its labels [fields, n]."""
    rows, key_side = {"operand": queries}, {"operand": keys}
    if labels is not None:
        rows["labels"], key_side["labels"] = labels.rows.T, labels.keys.T
    return rows, key_side


def _block(block: int | None, operand: jax.Array) -> int:
    """A multiple of 128 (a side is the lanes of one kernel or the other), no longer than the side asks for."""
    block = block or default_block(operand.shape[1], operand.dtype.itemsize)
    if block % LANES:
        raise ValueError(f"a block of {block} is not a multiple of {LANES} lanes")
    return min(block, pl.cdiv(operand.shape[0], LANES) * LANES)
