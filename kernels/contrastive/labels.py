"""Labels that are equal if the texts are: the contrastive kernels leave out false negatives by them.

Legend: b query rows, N keys, M texts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

EMPTY = -1  # an empty slot: the row or the key is left out everywhere
NO_QUERY_TEXT = -2  # equals no other label
NO_KEY_TEXT = -3  # equals no other label


class PairLabels(NamedTuple):
    """Integer labels of the rows and the keys of a similarity block; two labels are equal if the texts are."""

    rows: jax.Array  # [b, 3] int32: query text, positive text, column of the row's own positive
    keys: jax.Array  # [N, 2] int32: key text, anchor text


def text_labels(
    text_ids: jax.Array,  # [M, 2] uint32: 64-bit text id as (low, high); (0, 0) is an empty slot
) -> jax.Array:  # [M] int32
    """The rank of each id among the distinct ids, so that labels are equal if ids are; EMPTY for (0, 0)."""
    if text_ids.ndim != 2 or text_ids.shape[1] != 2 or text_ids.dtype != jnp.uint32:
        raise ValueError(f"text_ids must be [M, 2] uint32, not {text_ids.shape} {text_ids.dtype}")
    low, high = text_ids[:, 0], text_ids[:, 1]
    slots = jnp.arange(text_ids.shape[0], dtype=jnp.int32)
    # The order of equal ids does not matter, and XLA compiles a stable sort for a TPU almost twice as long.
    high_sorted, low_sorted, slots_sorted = jax.lax.sort((high, low, slots), num_keys=2, is_stable=False)
    is_new = (high_sorted[1:] != high_sorted[:-1]) | (low_sorted[1:] != low_sorted[:-1])
    ranks = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(is_new, dtype=jnp.int32)])
    labels = jnp.zeros_like(slots).at[slots_sorted].set(ranks, unique_indices=True)
    return jnp.where((low == 0) & (high == 0), EMPTY, labels)


def pair_labels(
    query_labels: jax.Array | None,  # [b, 2] int32
    key_labels: jax.Array | None,  # [N, 2] int32
    positives: jax.Array | None,  # [b] int32
    num_rows: int,
) -> PairLabels | None:
    """The labels in the form that the kernels take; without query labels only empty keys are left out."""
    if key_labels is None:
        return None
    if query_labels is None:
        rows = jnp.full((num_rows, 3), NO_QUERY_TEXT, jnp.int32)
    else:
        rows = jnp.concatenate([query_labels, positives[:, None]], axis=1)
    key_text, anchor_text = key_labels[:, 0], key_labels[:, 1]
    anchor_text = jnp.where(anchor_text == EMPTY, NO_KEY_TEXT, anchor_text)
    return PairLabels(rows, jnp.stack([key_text, anchor_text], axis=1))


def operand_sides(
    queries: jax.Array,  # [b, D]
    keys: jax.Array,  # [N, D]
    labels: PairLabels | None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(rows, keys) as a kernel takes them: the "operand" [n, D] of each side, and its "labels" [fields, n] if given.

    As [n, fields] the labels would be padded to whole lanes in memory.
    """
    rows, key_side = {"operand": queries}, {"operand": keys}
    if labels is not None:
        rows["labels"], key_side["labels"] = labels.rows.T, labels.keys.T
    return rows, key_side


def is_left_out(row_fields: tuple, key_fields: tuple, columns: jax.Array) -> jax.Array:
    """True if the pair (i, j) is left out: it has an empty slot, or key j is a false negative of row i.

    A key is a false negative if its text is the row's positive or the row's query, or if it is the positive of the same
    query text elsewhere in the batch (the key's anchor is the row's query). The row's own positive never is.

    row_fields are (query text, positive text, positive column), key_fields are (key text, anchor text) and `columns` is
    the index j: integer arrays that broadcast against each other, in either orientation.
    """
    return _is_same_text(row_fields, key_fields, columns) | _is_empty(row_fields, key_fields)


def is_false_negative(row_fields: tuple, key_fields: tuple, columns: jax.Array) -> jax.Array:
    """True if the pair is left out though neither slot is empty. (Mosaic GPU cannot negate a mask.)"""
    return _is_same_text(row_fields, key_fields, columns) & (key_fields[0] != EMPTY) & (row_fields[0] != EMPTY)


def _is_same_text(row_fields, key_fields, columns):
    query_text, positive_text, positive_column = row_fields
    key_text, anchor_text = key_fields
    same_text = (key_text == positive_text) | (key_text == query_text) | (anchor_text == query_text)
    return same_text & (columns != positive_column)


def _is_empty(row_fields, key_fields):
    return (key_fields[0] == EMPTY) | (row_fields[0] == EMPTY)
