"""row_lse_i = log sum_j exp(s_ij), column_lse_j = log sum_i exp(s_ij), s_ij = scale <q_i, k_j>, blocked, any back end.

[b, N] is never formed: one tile of float32 scores of at most TILE_BYTES is live at a time (XLA keeps two or three
arrays of that size). With u = b N D the forward costs 2u FLOPs and the backward 6u, the least if scores are recomputed.
If the whole block is one tile there is no loop, and XLA shares the product between forward and backward.

The gradient of the sum of the rows' log-sum-exps is the softmax, up to a factor. So `sum_and_gradients` keeps the
exponentials of a strip of r rows and computes loss and gradient in one pass, 6u, the least possible.

Legend: b query rows, N keys, D embedding width; r rows and c columns of a tile.
"""

import jax
import jax.numpy as jnp

from kernels.contrastive import tile
from kernels.contrastive.labels import EMPTY, NO_KEY_TEXT, NO_QUERY_TEXT, PairLabels, is_left_out
from kernels.implementation import device_kind
from kernels.products import product

CPU_TILE_BYTES = 4 * 2**20  # stays in the processor's cache
TILE_BYTES = 64 * 2**20  # elsewhere: few and large products
ROW_BLOCK = 1024
"""Rows of a tile, if there are as many: all three products of the backward then have sides that are not short."""
CPU_STRIP_ROWS, CPU_STRIP_BYTES = 256, 64 * 2**20
STRIP_ROWS, STRIP_BYTES = 1024, 256 * 2**20  # elsewhere
"""Size of the largest strip. Each strip reads and writes the whole gradient of the keys. With half the rows this still
costs less than recomputing the scores, with fewer it hardly does (measured on a CPU; elsewhere 0.4 r FLOPs per byte).
"""


def default_blocks(num_rows: int, num_keys: int) -> tuple[int, int]:
    """(r, c): the whole block if it is no larger than a tile, else ROW_BLOCK rows and as many columns as fit."""
    tile_size = _tile_size()
    if num_rows * num_keys <= tile_size:
        return num_rows, num_keys
    column_block = min(_power_of_two_below(tile_size // min(num_rows, ROW_BLOCK)), num_keys)
    return min(num_rows, _power_of_two_below(tile_size // column_block)), column_block


def strip_blocks(
    num_rows: int, num_keys: int, dtype: jnp.dtype, row_block: int | None = None
) -> tuple[int, int] | None:
    """(r, c) of `sum_and_gradients`: the whole block if it is no larger than a tile, else strips of equal height.

    None if even strips of the smallest useful height are too large. A height that the caller asks for (row_block) is
    always taken.
    """
    if row_block is None:
        if default_blocks(num_rows, num_keys) == (num_rows, num_keys):
            return num_rows, num_keys
        most_rows, most_bytes = (
            (CPU_STRIP_ROWS, CPU_STRIP_BYTES) if device_kind() == "cpu" else (STRIP_ROWS, STRIP_BYTES))
        row_block = min(num_rows, most_rows, most_bytes // (num_keys * jnp.dtype(dtype).itemsize))
        if row_block < min(num_rows, most_rows // 2):
            return None
    row_block = -(-num_rows // -(-num_rows // row_block))
    quarter_tile = _tile_size() // 4  # there is a block of the keys' gradient beside it
    return row_block, min(_power_of_two_below(quarter_tile // row_block), num_keys)


def _tile_size() -> int:
    return (CPU_TILE_BYTES if device_kind() == "cpu" else TILE_BYTES) // 4


def _power_of_two_below(size: int) -> int:
    return 1 << max(size.bit_length() - 1, 0)


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
) -> tuple[jax.Array, jax.Array | None, tile.RowStatistics]:  # row_lse [b], column_lse [N] or None, float32
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    rows, keys = _split(queries, keys, labels, row_block, column_block)

    def column_step(row_results, key_block):
        def row_step(column_sums, row):
            row_block, (row_sums, row_statistics) = row
            scores = _scores(row_block, key_block, scale)
            terms = tile.terms(scores, shift)
            if columns:
                column_sums = tile.add(column_sums, terms, axis=0)
            row_statistics = tile.add_statistics(row_statistics, scores, _pair_fields(row_block, key_block))
            return column_sums, (tile.add(row_sums, terms, axis=1), row_statistics)

        no_sums = tile.no_sums((1, key_block["operand"].shape[0]), shift) if columns else None
        column_sums, row_results = _scan(row_step, no_sums, (rows, row_results))
        return row_results, tile.logsumexp(column_sums, shift) if columns else None

    row_shape = (*rows["operand"].shape[:2], 1)  # [row_blocks, r, 1]
    no_results = tile.no_sums(row_shape, shift), tile.no_statistics(row_shape)
    (row_sums, row_statistics), column_lse = _scan(column_step, no_results, keys)
    row_lse = tile.logsumexp(row_sums, shift)
    row_lse, row_statistics = jax.tree.map(lambda array: array.reshape(-1)[:num_rows], (row_lse, row_statistics))
    return row_lse, column_lse.reshape(-1)[:num_keys] if columns else None, row_statistics


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
) -> tuple[jax.Array, jax.Array, jax.Array]:  # dQ [b, D] in the operands' dtype, dK [N, D], dscale []
    """dS = unit tile.score_gradient; dQ = scale dS K; dK = scale dS^T Q; dscale = sum_ij dS_ij <q_i, k_j>."""
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    rows, keys = _split(queries, keys, labels, row_block, column_block, row_values, column_values)
    transposed = adds_transposed(queries.dtype)
    if transposed:
        rows["transposed"] = jnp.swapaxes(rows["operand"], 1, 2)

    def column_step(query_gradient, key_block):
        def row_step(key_gradient, row):
            row_block, query_gradient = row
            sides = [[value[:, None] for value in row_block["values"]]]
            if column_values is not None:
                sides.append([value[None, :] for value in key_block["values"]])
            score_gradient = tile.score_gradient(_scores(row_block, key_block, scale), sides, shift)
            score_gradient = score_gradient.astype(queries.dtype)
            query_gradient += product(score_gradient, key_block["operand"], (1, 0))
            if transposed:
                key_gradient += product(row_block["transposed"], score_gradient, (1, 0))
            else:
                key_gradient += product(score_gradient, row_block["operand"], (0, 0))
            return key_gradient, query_gradient

        shape = key_block["operand"].shape
        zeros = jnp.zeros(shape[::-1] if transposed else shape, jnp.float32)
        key_gradient, query_gradient = _scan(row_step, zeros, (rows, query_gradient))
        key_gradient = key_gradient.T if transposed else key_gradient
        return query_gradient, (scale * unit * key_gradient).astype(key_gradient_dtype)

    zeros = jnp.zeros(rows["operand"].shape, jnp.float32)
    query_gradient, key_gradient = _scan(column_step, zeros, keys)
    scale_gradient = unit * jnp.sum(query_gradient * rows["operand"].astype(jnp.float32))
    query_gradient = (scale * unit * query_gradient).astype(queries.dtype)
    return (query_gradient.reshape(-1, queries.shape[1])[:num_rows],
            key_gradient.reshape(-1, queries.shape[1])[:num_keys], scale_gradient)


def sum_and_gradients(
    queries: jax.Array,  # [b, D]
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    *,
    shift: float | None,
    row_block: int,
    column_block: int,
    transposed: bool,
) -> tuple[jax.Array, tile.RowStatistics, tuple[jax.Array, jax.Array, jax.Array]]:
    """sum_i row_lse_i, the statistics, and the sum's gradients, float32: dQ [b, D], dK in blocks, dscale [].

    Strip by strip: E_ij = exp(s_ij - c_i) is kept in the operands' dtype, [r, N], with c the constant shift or the
    row's maximum so far. Then, with w_i = exp(c_i - row_lse_i), dQ_i = scale w_i sum_j E_ij k_j, added up with the
    sums, and dK_j += sum_i E_ij (scale w_i q_i). These three products, 6u, are the least
    possible; they take 0.83 of the time (CPU, 4096 x 16384 x 384 float32). With bfloat16 operands E and w q are
    rounded. The blocks of dK are [column_blocks, c, D], or [column_blocks, D, c] with `transposed` (adds_transposed),
    for scaled_key_gradient.
    """
    num_rows = queries.shape[0]
    rows, keys = _split(queries, keys, labels, row_block, column_block)
    num_blocks, block_rows, width = keys["operand"].shape

    def strip_step(key_gradient, row):
        operand = row["operand"].T if transposed else row["operand"]

        def sum_step(results, key_block):
            sums, gradient, row_statistics = results
            scores = _scores(row, key_block, scale)
            terms, maximum = tile.terms(scores, shift), sums.maximum
            sums = tile.add(sums, terms, axis=1)
            exponentials = tile.exponentials(terms, sums).astype(queries.dtype)
            if shift is None:
                gradient *= tile.share(maximum, sums.maximum, shift)
            gradient += product(exponentials, key_block["operand"], (1, 0))
            row_statistics = tile.add_statistics(row_statistics, scores, _pair_fields(row, key_block))
            return (sums, gradient, row_statistics), (exponentials, sums.maximum)

        def key_step(key_gradient, block):
            index, exponentials, maximum = block
            weights = scale * tile.share(maximum, row_lse, shift)
            if transposed:
                part = product(operand * weights.T, exponentials, (1, 0))
            else:
                part = product(exponentials, (operand * weights).astype(queries.dtype), (0, 0))
            return key_gradient.at[index].add(part), None

        row_shape = (row["operand"].shape[0], 1)
        no_results = (tile.no_sums(row_shape, shift), jnp.zeros(row["operand"].shape, jnp.float32),
                      tile.no_statistics(row_shape))
        (sums, gradient, row_statistics), strip = _scan(sum_step, no_results, keys)
        row_lse = tile.logsumexp(sums, shift)
        key_gradient, _ = _scan(key_step, key_gradient, (jnp.arange(num_blocks), *strip))
        return key_gradient, (row_lse, tile.share(sums.maximum, row_lse, shift) * gradient, row_statistics)

    zeros = jnp.zeros((num_blocks, *((width, block_rows) if transposed else (block_rows, width))), jnp.float32)
    key_gradient, results = _scan(strip_step, zeros, rows)
    row_lse, query_gradient, row_statistics = jax.tree.map(
        lambda array: array.reshape(-1, array.shape[-1])[:num_rows], results)
    scale_gradient = jnp.sum(query_gradient * queries.astype(jnp.float32))
    row_statistics = jax.tree.map(lambda array: array[:, 0], row_statistics)
    return jnp.sum(row_lse), row_statistics, (scale * query_gradient, key_gradient, scale_gradient)


def scaled_key_gradient(blocks: jax.Array, factor: jax.Array, num_keys: int, transposed: bool) -> jax.Array:  # [N, D]
    """factor dK from the blocks of `sum_and_gradients`, in place: a block at a time."""
    num_blocks, rows, columns = blocks.shape

    def step(blocks, index):
        block = factor * blocks[index]
        return blocks.at[index].set(block.T.reshape(block.shape) if transposed else block), None

    blocks, _ = _scan(step, blocks, jnp.arange(num_blocks))
    return blocks.reshape(-1, rows if transposed else columns)[:num_keys]


def adds_transposed(dtype: jnp.dtype) -> bool:
    """Whether dK^T = Q^T dS is faster than dK = dS^T Q, for which XLA's CPU back end makes a transposed copy of dS."""
    return device_kind() == "cpu" and dtype == jnp.float32


def _split(queries, keys, labels, row_block, column_block, row_values=(), key_values=()):
    """Rows and keys as dicts of arrays with a leading block axis: [row_blocks, r, ...] and [column_blocks, c, ...].

    If the blocks do not divide the sizes, zeros are appended and labelled EMPTY.
    """
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    default_row_block, default_column_block = default_blocks(num_rows, num_keys)
    row_block = min(row_block or default_row_block, num_rows)
    column_block = min(column_block or default_column_block, num_keys)
    rows, keys = {"operand": queries, "values": row_values}, {"operand": keys, "values": key_values}
    ragged = num_rows % row_block or num_keys % column_block
    if labels is not None or ragged:
        row_labels = jnp.full((num_rows, 3), NO_QUERY_TEXT, jnp.int32) if labels is None else labels.rows
        key_labels = jnp.full((num_keys, 2), NO_KEY_TEXT, jnp.int32) if labels is None else labels.keys
        rows |= {"query_text": row_labels[:, 0], "positive_text": row_labels[:, 1], "positive": row_labels[:, 2]}
        keys |= {"key_text": key_labels[:, 0], "anchor_text": key_labels[:, 1],
                 "column": jnp.arange(num_keys, dtype=jnp.int32)}
    return _into_blocks(rows, row_block), _into_blocks(keys, column_block)


def _into_blocks(arrays, block: int):
    def split(path, array):
        padding = [(0, -array.shape[0] % block)] + [(0, 0)] * (array.ndim - 1)
        padded = jnp.pad(array, padding, constant_values=EMPTY if path[0].key in ("query_text", "key_text") else 0)
        return padded.reshape(-1, block, *array.shape[1:])

    return jax.tree.map_with_path(split, arrays)


def _scores(row_block, key_block, scale) -> jax.Array:  # [r, c] float32, -inf for pairs that are left out
    scores = scale * product(row_block["operand"], key_block["operand"], (1, 1))
    fields = _pair_fields(row_block, key_block)
    return scores if fields is None else jnp.where(is_left_out(*fields), -jnp.inf, scores)


def _pair_fields(row_block, key_block):
    """The arguments of is_left_out, or None if nothing can be left out."""
    if "query_text" not in row_block:
        return None
    row_fields = [row_block[name][:, None] for name in ("query_text", "positive_text", "positive")]
    key_fields = [key_block[name][None, :] for name in ("key_text", "anchor_text")]
    return row_fields, key_fields, key_block["column"][None, :]


def _scan(step, carry, blocks):
    """lax.scan; a single block is computed without a loop."""
    if jax.tree.leaves(blocks)[0].shape[0] > 1:
        return jax.lax.scan(step, carry, blocks)
    carry, outputs = step(carry, jax.tree.map(lambda array: array[0], blocks))
    return carry, jax.tree.map(lambda array: array[None], outputs)
