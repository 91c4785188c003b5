"""row_lse_i = log sum_j exp(s_ij), column_lse_j = log sum_i exp(s_ij), s_ij = scale <q_i, k_j>, blocked, any back end.

[b, N] is never formed: a tile of at most TILE_BYTES of float32 scores is live at a time (XLA keeps two or three arrays
of that size). With u = b N D the forward costs 2u FLOPs and the backward 6u, the floor of any scheme that recomputes
the scores. Where the whole block is one tile there is no loop, and XLA shares the product between forward and backward.

Legend: b query rows, N keys, D width; r rows and c columns of a tile; R row blocks and C column blocks.
"""

import jax
import jax.numpy as jnp

from kernels.contrastive.labels import EMPTY, NO_KEY_TEXT, NO_QUERY_TEXT, PairLabels, is_left_out

TILE_BYTES = 8 * 2**20
MIN_COLUMN_BLOCK = 256
"""A product with fewer columns than this is bound by memory traffic of the [r, D] operands."""


def default_blocks(num_rows: int, num_keys: int) -> tuple[int, int]:
    """(r, c): the whole block where it fits TILE_BYTES, else all rows and few columns, else few rows too."""
    tile_size = TILE_BYTES // 4
    if num_rows * num_keys <= tile_size:
        return num_rows, num_keys
    column_block = max(MIN_COLUMN_BLOCK, _power_of_two_below(tile_size // num_rows))
    column_block = min(column_block, num_keys)
    return min(num_rows, _power_of_two_below(tile_size // column_block)), column_block


def _power_of_two_below(size: int) -> int:
    return 1 << max(size.bit_length() - 1, 0)


def forward(
    queries: jax.Array,  # [b, D]
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    *,
    columns: bool,
    row_block: int | None = None,
    column_block: int | None = None,
) -> tuple[jax.Array, jax.Array | None]:  # row_lse [b], column_lse [N] or None, float32
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    rows, keys = _split(queries, keys, labels, row_block, column_block)

    def column_step(row_sums, key_block):
        def row_step(column_sums, row):
            row_block, row_sums = row
            scores = _scores(row_block, key_block, scale)
            column_sums = _accumulate(column_sums, scores, axis=0) if columns else None
            return column_sums, _accumulate(row_sums, scores, axis=1)

        column_sums, row_sums = _scan(row_step, _no_sum(key_block["operand"]) if columns else None, (rows, row_sums))
        return row_sums, _finish(column_sums) if columns else None

    row_sums, column_lse = _scan(column_step, jax.vmap(_no_sum)(rows["operand"]), keys)
    row_lse = _finish(row_sums).reshape(-1)[:num_rows]
    return row_lse, column_lse.reshape(-1)[:num_keys] if columns else None


def backward(
    queries: jax.Array,  # [b, D]
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    row_lse: jax.Array,  # [b]
    column_lse: jax.Array | None,  # [N]
    row_cotangent: jax.Array,  # [b]
    column_cotangent: jax.Array | None,  # [N]
    *,
    row_block: int | None = None,
    column_block: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # dQ [b, D], dK [N, D] in the operands' dtype, dscale []
    """dS_ij = g_i exp(s_ij - row_lse_i) + h_j exp(s_ij - column_lse_j); dQ = scale dS K; dK = scale dS^T Q."""
    columns = column_lse is not None
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    row_values = {"lse": row_lse, "cotangent": row_cotangent}
    key_values = {"lse": column_lse, "cotangent": column_cotangent} if columns else {}
    rows, keys = _split(queries, keys, labels, row_block, column_block, row_values, key_values)

    def column_step(query_gradient, key_block):
        def row_step(key_gradient, row):
            row_block, query_gradient = row
            scores = _scores(row_block, key_block, scale)
            score_gradient = row_block["cotangent"][:, None] * jnp.exp(scores - row_block["lse"][:, None])
            if columns:
                score_gradient += key_block["cotangent"][None, :] * jnp.exp(scores - key_block["lse"][None, :])
            score_gradient = score_gradient.astype(queries.dtype)
            query_gradient += _product(score_gradient, key_block["operand"], (1, 0))
            key_gradient += _product(score_gradient, row_block["operand"], (0, 0))
            return key_gradient, query_gradient

        zeros = jnp.zeros(key_block["operand"].shape, jnp.float32)
        key_gradient, query_gradient = _scan(row_step, zeros, (rows, query_gradient))
        return query_gradient, (scale * key_gradient).astype(queries.dtype)

    zeros = jnp.zeros(rows["operand"].shape, jnp.float32)
    query_gradient, key_gradient = _scan(column_step, zeros, keys)
    scale_gradient = jnp.sum(query_gradient * rows["operand"].astype(jnp.float32))  # sum_ij dS_ij <q_i, k_j>
    query_gradient = (scale * query_gradient).astype(queries.dtype)
    return (query_gradient.reshape(-1, queries.shape[1])[:num_rows],
            key_gradient.reshape(-1, queries.shape[1])[:num_keys], scale_gradient)


def _split(queries, keys, labels, row_block, column_block, row_values=None, key_values=None):
    """Rows and keys as dicts of arrays with a leading block axis: [R, r, ...] and [C, c, ...].

    Where the blocks do not divide the sizes, zeros are appended and labelled EMPTY.
    """
    num_rows, num_keys = queries.shape[0], keys.shape[0]
    default_row_block, default_column_block = default_blocks(num_rows, num_keys)
    row_block = min(row_block or default_row_block, num_rows)
    column_block = min(column_block or default_column_block, num_keys)
    rows, keys = {"operand": queries, **(row_values or {})}, {"operand": keys, **(key_values or {})}
    ragged = num_rows % row_block or num_keys % column_block
    if labels is not None or ragged:
        row_labels = jnp.full((num_rows, 3), NO_QUERY_TEXT, jnp.int32) if labels is None else labels.rows
        key_labels = jnp.full((num_keys, 2), NO_KEY_TEXT, jnp.int32) if labels is None else labels.keys
        rows |= {"query_text": row_labels[:, 0], "positive_text": row_labels[:, 1], "positive": row_labels[:, 2]}
        keys |= {"key_text": key_labels[:, 0], "anchor_text": key_labels[:, 1],
                 "column": jnp.arange(num_keys, dtype=jnp.int32)}
    return _into_blocks(rows, row_block), _into_blocks(keys, column_block)


def _into_blocks(arrays: dict[str, jax.Array], block: int) -> dict[str, jax.Array]:
    def split(name, array):
        padding = [(0, -array.shape[0] % block)] + [(0, 0)] * (array.ndim - 1)
        padded = jnp.pad(array, padding, constant_values=EMPTY if name in ("query_text", "key_text") else 0)
        return padded.reshape(-1, block, *array.shape[1:])

    return {name: split(name, array) for name, array in arrays.items()}


def _scores(row_block, key_block, scale) -> jax.Array:  # [r, c] float32, -inf where the pair is no candidate
    scores = scale * _product(row_block["operand"], key_block["operand"], (1, 1))
    if "query_text" not in row_block:
        return scores
    row_fields = [row_block[name][:, None] for name in ("query_text", "positive_text", "positive")]
    key_fields = [key_block[name][None, :] for name in ("key_text", "anchor_text")]
    return jnp.where(is_left_out(row_fields, key_fields, key_block["column"][None, :]), -jnp.inf, scores)


def _product(left, right, contract: tuple[int, int]) -> jax.Array:
    """left times right, contracted over one axis of each, accumulated in float32."""
    return jax.lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())),
                               precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _scan(step, carry, blocks):
    """lax.scan; a single block is computed without a loop."""
    if jax.tree.leaves(blocks)[0].shape[0] > 1:
        return jax.lax.scan(step, carry, blocks)
    carry, outputs = step(carry, jax.tree.map(lambda array: array[0], blocks))
    return carry, jax.tree.map(lambda array: array[None], outputs)


def _no_sum(operand):
    """(maximum, sum of exp(score - maximum)) of no scores, for each row of the operand."""
    return jnp.full(operand.shape[:1], -jnp.inf, jnp.float32), jnp.zeros(operand.shape[:1], jnp.float32)


def _accumulate(sums, scores, axis: int):
    """The running maximum and sum, with the tile's scores added along an axis."""
    maximum, total = sums
    new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=axis))
    shift = _finite(new_maximum)
    new_total = total * jnp.exp(maximum - shift) + jnp.sum(jnp.exp(scores - jnp.expand_dims(shift, axis)), axis=axis)
    return new_maximum, new_total


def _finish(sums) -> jax.Array:
    maximum, total = sums
    return _finite(maximum) + jnp.log(total)


def _finite(maximum):
    """The maximum, or 0 where there was no candidate, so that exp(-inf - maximum) is 0 and not NaN."""
    return jnp.where(maximum == -jnp.inf, 0.0, maximum)
