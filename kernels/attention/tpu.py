"""out = dropout(softmax(q k^T / sqrt(d) over the tokens of the same text)) v: Pallas for TPU.

A program handles a block of heads of one row, whose tokens all fit in VMEM. No score goes to HBM, there is no running
maximum, and the backward pass keeps only the operands and recomputes the rest. Both passes read queries, keys and
values as the projection wrote them, [r, L, 3 D], and the gradient is written in that layout: nothing is transposed in
HBM.

Scores are transposed, [L keys, 128 queries]. So the values of a query (segment, maximum, sum) are a row of lanes that
needs no transposing, sums over keys add registers, and every product is a plain one. Heads are narrower than a
register's 128 lanes. The heads of one register are done together: a head is selected by zeroing the lanes of the others
in one operand of a product (a matrix unit pads to 128 anyway), or as rows of a transposed operand.

Legend: r rows, L tokens per row, D hidden size, h heads, d = D / h.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.dropout import DropoutKeys, keep
from kernels.products import LANES

VMEM_BYTES = 14 * 2**20
"""Of the 16 MiB that XLA grants a kernel on v3 to v5p without a flag (the rest is Mosaic's own)."""

LONGEST_ROW = 512
"""Tokens. Of a longer row, 128 lanes of heads may not fit in VMEM (float32 at full precision)."""


def vmem_bytes(length: int, width: int, itemsize: int) -> int:
    """VMEM of the backward kernel; the forward needs less. The factor of two is for double buffering.

    1 to 8 % above what libtpu reports on v3 if a kernel is too large (float32 at full precision); v5e needs less.
    """
    blocks = 2 * 5 * length * width * itemsize  # queries, keys, values, gradient; a third of the result
    parts = 3 * length * width * itemsize  # the result
    tiles = 24 * length * LANES * 4  # [L, 128] float32: operands of one head, scores, gradients, spilled registers
    if itemsize == 4:  # a float32 product at full precision splits its operands into three bfloat16 parts
        tiles += 8 * length * LANES * 6
    return blocks + parts + tiles


def block_width(length: int, size: int, itemsize: int) -> int:
    """Lanes of a block of heads: the most that fit, of those that divide the hidden size."""
    widths = [width for width in range(LANES, size + 1, LANES) if size % width == 0]
    return max(width for width in widths if vmem_bytes(length, width, itemsize) <= VMEM_BYTES)


def unsupported(qkv: jax.Array, num_heads: int, kind: str) -> str | None:
    """Why the kernel cannot run on these operands on that kind of device; None: it can."""
    _, length, width = qkv.shape
    size = width // 3
    if size % LANES or LANES % (size // num_heads):
        return f"hidden size {size} in {num_heads} heads is not a number of whole registers of {LANES} lanes"
    if length % LANES or length > LONGEST_ROW:
        return f"rows of {length} tokens are not a multiple of {LANES} up to {LONGEST_ROW}"
    if kind in ("TPU v2", "TPU v3") and qkv.dtype != jnp.float32:
        return f"Mosaic has no {qkv.dtype} matrix operand on a {kind}"
    return None


def forward(
    qkv: jax.Array,  # [r, L, 3 D]
    segments: jax.Array,  # [r, L] int32
    dropout: DropoutKeys | None,  # [r]
    *,
    num_heads: int,
    rate: float,
    interpret: bool = False,
) -> tuple[jax.Array, tuple]:  # out [r, L, D]; residuals of the backward beside the operands: none
    rows, length, width = qkv.shape
    size = width // 3
    block = block_width(length, size, qkv.dtype.itemsize)
    out = _call(
        functools.partial(_forward_kernel, head_size=size // num_heads, rate=rate),
        (rows, size // block), qkv, segments, dropout, None,
        out_shape=(rows, length, size),
        out_spec=pl.BlockSpec((None, length, block), lambda row, heads: (row, 0, heads)),
        scratch=[], products=2, interpret=interpret,
    )
    return out, ()


def backward(
    qkv: jax.Array,  # [r, L, 3 D]
    segments: jax.Array,  # [r, L] int32
    dropout: DropoutKeys | None,  # [r]
    residuals: tuple,
    gradient: jax.Array,  # [r, L, D]
    *,
    num_heads: int,
    rate: float,
    interpret: bool = False,
) -> jax.Array:  # [r, L, 3 D]
    """The result of a block of heads lies in three places: the last axis of the grid writes one after the other."""
    rows, length, width = qkv.shape
    size = width // 3
    block = block_width(length, size, qkv.dtype.itemsize)
    blocks = size // block
    return _call(
        functools.partial(_backward_kernel, head_size=size // num_heads, rate=rate),
        (rows, blocks, 3), qkv, segments, dropout, gradient,
        out_shape=(rows, length, width),
        out_spec=pl.BlockSpec((None, length, block), lambda row, heads, part: (row, 0, part * blocks + heads)),
        scratch=[pltpu.VMEM((3, length, block), qkv.dtype)], products=5, interpret=interpret,
    )


def _forward_kernel(operands, out, *, head_size: int, rate: float):
    """Row, block of heads."""
    length, width = out.shape

    def register(index, _):  # the heads of one register of lanes
        lanes = _slice(index)
        keys = operands["keys"][:, lanes]
        values = _transpose(operands["values"][:, lanes])  # [128, L]

        def block(block_index, _):  # of 128 queries
            rows = _slice(block_index)
            queries = _transpose(_scaled(operands["queries"][rows, lanes], head_size))  # [128, 128]
            attended = []
            for head in range(LANES // head_size):
                probabilities = _probabilities(operands["segments"], _only(keys, head, head_size), queries, rows)
                dropped = _dropped(probabilities, operands, index, head, block_index, head_size, rate)
                attended.append(_product(_rows(values, head, head_size), dropped.astype(values.dtype)))
            out[rows, lanes] = jnp.concatenate(attended, axis=0).T.astype(out.dtype)
            return 0

        return jax.lax.fori_loop(0, length // LANES, block, 0)

    jax.lax.fori_loop(0, width // LANES, register, 0)


def _backward_kernel(operands, result, parts, *, head_size: int, rate: float):
    """Row, block of heads, part of the result: the first part computes everything."""
    length, width = result.shape

    def register(index, _):
        lanes = _slice(index)
        keys, values = operands["keys"][:, lanes], operands["values"][:, lanes]
        transposed_keys = _transpose(keys)  # [128, L]

        def block(block_index, sums):
            d_keys, d_values = sums  # [L, 128] float32
            rows = _slice(block_index)
            queries, gradient = _scaled(operands["queries"][rows, lanes], head_size), operands["gradient"][rows, lanes]
            transposed_queries, transposed_gradient = _transpose(queries), _transpose(gradient)
            d_queries = []
            for head in range(LANES // head_size):
                probabilities = _probabilities(
                    operands["segments"], _only(keys, head, head_size), transposed_queries, rows)
                dropped = _dropped(probabilities, operands, index, head, block_index, head_size, rate)
                product = dropped * _product(_only(values, head, head_size), transposed_gradient)
                d_scores = product - probabilities * jnp.sum(product, axis=0, keepdims=True)
                dropped, d_scores = dropped.astype(keys.dtype), d_scores.astype(keys.dtype)
                d_queries.append(_product(_rows(transposed_keys, head, head_size), d_scores))
                d_keys += _product(d_scores, _only(queries, head, head_size))
                d_values += _product(dropped, _only(gradient, head, head_size))
            d_queries = jnp.concatenate(d_queries, axis=0).T * (1 / math.sqrt(head_size))
            parts[0, rows, lanes] = d_queries.astype(parts.dtype)
            return d_keys, d_values

        zeros = jnp.zeros((length, LANES), jnp.float32)
        d_keys, d_values = jax.lax.fori_loop(0, length // LANES, block, (zeros, zeros))
        parts[1, :, lanes], parts[2, :, lanes] = d_keys.astype(parts.dtype), d_values.astype(parts.dtype)
        return 0

    @pl.when(pl.program_id(2) == 0)
    def _():
        jax.lax.fori_loop(0, width // LANES, register, 0)

    result[...] = parts[pl.program_id(2)]


def _probabilities(segments, keys, queries, rows):
    """softmax over axis 0 of the scores of keys [L, 128] and queries [128, 128] of the same text, [L, 128] float32."""
    same_text = segments[:, rows] == segments[...].T
    scores = jnp.where(same_text, _product(keys, queries), -1e30)
    exponentials = jnp.exp(scores - jnp.max(scores, axis=0, keepdims=True))
    return exponentials * (1 / jnp.sum(exponentials, axis=0, keepdims=True))


def _dropped(probabilities, operands, register, head: int, block, head_size: int, rate: float):
    """The probabilities [L, 128] with dropout: the same element (head, query, key) of a row in every implementation."""
    if "dropout" not in operands:
        return probabilities
    length = probabilities.shape[0]
    heads = LANES // head_size
    of_block = operands["queries"].shape[1] // head_size
    head = pl.program_id(1) * of_block + register * heads + head
    first = ((head * length + block * LANES) * length).astype(jnp.uint32)
    key, query = (jax.lax.broadcasted_iota(jnp.uint32, probabilities.shape, axis) for axis in (0, 1))
    kept = keep(first + query * np.uint32(length) + key, operands["dropout"][0, 0], operands["dropout"][0, 1], rate)
    return jnp.where(kept, probabilities * (1 / (1 - rate)), 0.0)


def _product(left, right):
    """left times right in float32, as exact as the encoder's other products (default_matmul_precision)."""
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


def _only(operand, head: int, head_size: int):
    """[n, 128] with zeros in the lanes of other heads."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, operand.shape, 1)
    return jnp.where(lanes // head_size == head, operand.astype(jnp.float32), 0.0).astype(operand.dtype)


def _rows(transposed, head: int, head_size: int):
    return transposed[head * head_size:(head + 1) * head_size]


def _scaled(queries, head_size: int):
    return (queries.astype(jnp.float32) * (1 / math.sqrt(head_size))).astype(queries.dtype)


def _transpose(operand):
    return operand.astype(jnp.float32).T.astype(operand.dtype)


def _slice(index):
    return pl.ds(pl.multiple_of(index * LANES, LANES), LANES)


def _call(
    kernel, grid, qkv, segments, dropout, gradient, *, out_shape, out_spec, scratch, products: int, interpret: bool
):
    """Runs the kernel over (rows, blocks of heads, ...)."""
    rows, length, width = qkv.shape
    blocks = grid[1]
    block = width // (3 * blocks)

    def heads_of(part: int):
        return pl.BlockSpec((None, length, block), lambda row, heads, *_: (row, 0, part * blocks + heads))

    operands = {"queries": qkv, "keys": qkv, "values": qkv, "segments": segments[:, None, :]}
    specs = {"queries": heads_of(0), "keys": heads_of(1), "values": heads_of(2),
             "segments": pl.BlockSpec((None, 1, length), lambda row, *_: (row, 0, 0))}
    if dropout is not None:
        operands["dropout"] = jnp.stack(dropout, axis=-1)[:, None, :]
        specs["dropout"] = pl.BlockSpec((None, 1, 2), lambda row, *_: (row, 0, 0), memory_space=pltpu.SMEM)
    if gradient is not None:
        operands["gradient"], specs["gradient"] = gradient, heads_of(0)
    out_shape = jax.ShapeDtypeStruct(out_shape, qkv.dtype)
    moved = {name: array for name, array in operands.items() if name not in ("keys", "values")} | {"result": out_shape}
    return pl.pallas_call(
        kernel, grid=grid, in_specs=[specs], out_shape=out_shape, out_specs=out_spec, scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")[:len(grid)]),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * rows * length**2 * width // 3,
            transcendentals=rows * length**2,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in moved.values()),
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
    )(operands)
