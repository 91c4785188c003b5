"""Contrastive loss over the global batch, seen from one device inside shard_map.

Legend: B examples in the global batch, b on this device, W devices, p packing blocks on this device, m examples per
block (b = p m), K texts per example, n examples, D embedding width.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from kernels.contrastive.api import similarity_logsumexp, summed_logsumexp
from kernels.contrastive.labels import text_labels
from kernels.contrastive.ring import ring_similarity_logsumexp
from kernels.contrastive.tile import RowStatistics, constant_shift
from kernels.products import UNIT_NORM_PRODUCT
from model.config import ModelConfig
from model.parameters import Parameter, Tree
from sharding.collectives import AxisName, psum_logsumexp
from sharding.layout import DEVICES
from training.objectives.objective import Embedded, Objective, split_texts

KeyExchange = Literal["all_gather", "ring", "bidirectional_ring"]


def contrastive_objective(
    model: ModelConfig,
    *,
    scale: float,
    learn_scale: bool,
    symmetric: Literal["auto", "always", "never"],
    key_exchange: KeyExchange,
    dtype: jnp.dtype,
    implementation: str,
    ring: tuple[int, ...] | None = None,
) -> Objective:
    """contrastive_loss as an objective; `ring` is the mesh's ring_order.

    A learned scale is exp(log_scale); it starts at `scale` and is logged.
    """
    bound = UNIT_NORM_PRODUCT * abs(scale) if model.normalize and not learn_scale else None

    def loss(parameters, memory, embedded: Embedded):
        learned = jnp.exp(parameters["contrastive"]["log_scale"]) if learn_scale else scale
        K = embedded.texts_per_example
        with jax.named_scope("contrastive_loss"):
            share, sums = contrastive_loss(
                embedded.embeddings, embedded.text_ids, texts_per_example=K, scale=learned,
                symmetric={"auto": K == 2, "always": True, "never": False}[symmetric], axis_name=DEVICES,
                key_exchange=key_exchange, ring=ring, dtype=dtype, bound=bound, implementation=implementation,
            )
        if learn_scale:
            sums["scale"] = lax.stop_gradient(learned) / lax.axis_size(DEVICES)
        return share, (sums, memory)

    return Objective(loss=loss, metrics=batch_metrics, parameters=declare_scale(scale) if learn_scale else {})


def declare_scale(scale: float) -> Tree:
    return {"contrastive": {"log_scale": Parameter((), (), lambda key, shape, dtype: jnp.full(
        shape, math.log(scale), dtype))}}


def labels_of_all_texts(text_ids: jax.Array, axis_name: AxisName) -> jax.Array:
    """Text ids [K, b, 2] of this device -> labels [K, B] that are equal where texts are, over all devices."""
    gathered = lax.all_gather(text_ids, axis_name, axis=1, tiled=True)  # [K, B, 2]
    return text_labels(gathered.reshape(-1, 2)).reshape(text_ids.shape[0], -1)


def candidate_labels(labels: jax.Array) -> jax.Array:
    """Labels [K, n] of n examples -> [(K - 1) * n, 2] = (key text, anchor text) of their keys, positives first.

    A positive's anchor is its query; a negative has no anchor.
    """
    anchors = jnp.full_like(labels[1:], -1).at[0].set(labels[0])
    return jnp.stack([labels[1:].reshape(-1), anchors.reshape(-1)], axis=-1)


def contrastive_loss(
    embeddings: jax.Array,  # [p, K * m, D] float32, this device's texts
    text_ids: jax.Array,  # [p, K * m, 2] uint32
    *,
    texts_per_example: int,
    scale: jax.Array | float,
    symmetric: bool,
    axis_name: AxisName,
    key_exchange: KeyExchange = "all_gather",
    ring: tuple[int, ...] | None = None,
    dtype: jnp.dtype = jnp.float32,
    bound: float | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """mean_i CE(scale * q_i K^T, i), plus the same over columns if symmetric: this device's share of the mean.

    Keys are the positives and the hard negatives of all devices. The sum of the shares over
    devices is the mean loss over the global batch (for the symmetric loss, the mean of both directions), and AD of a
    share, summed over devices, is the exact gradient of that mean. Equal texts in the global batch are not
    negatives of each other. Source: recipes/README.md; in-batch negatives, Henderson et al. 2017 (1705.00652).

    The loss is the same however the keys are exchanged: gathered on every device, or passed round a ring.

    Args:
      ring: the devices along the ring; None: as they are numbered.
      bound: an upper bound of |scale * <q, k>|, or None (kernels/contrastive/api.py).

    Returns: float32 scalar, and this device's share of the sums that batch_metrics takes.
    """
    if key_exchange not in get_args(KeyExchange):
        raise ValueError(f"key_exchange={key_exchange!r} is none of {', '.join(get_args(KeyExchange))}")
    texts = split_texts(embeddings.astype(dtype), texts_per_example)  # [K, b, D]
    ids = split_texts(text_ids, texts_per_example)
    queries, positives, keys = texts[0], texts[1], texts[1:].reshape(-1, texts.shape[-1])
    b, W = queries.shape[0], lax.axis_size(axis_name)
    B, device = W * b, lax.axis_index(axis_name)

    labels = labels_of_all_texts(ids, axis_name)  # [K, B]
    own_labels = lax.dynamic_slice_in_dim(labels, device * b, b, axis=1)  # [K, b]
    options = {"query_labels": own_labels[:2].T, "bound": bound, "axis_name": axis_name,
               "implementation": implementation}
    column_lse = None
    if key_exchange == "all_gather":
        of_devices = jnp.moveaxis(labels.reshape(-1, W, b), 1, 0)  # [W, K, b]
        options |= {"key_labels": jax.vmap(candidate_labels)(of_devices).reshape(-1, 2),
                    "positives": device * keys.shape[0] + jnp.arange(b)}
        if symmetric:
            row_lse, column_lse, statistics = similarity_logsumexp(queries, keys, scale, **options)
            of_positives = column_lse.reshape(W, -1)[:, :b].reshape(-1)  # [B], over this device's rows
            shift = constant_shift(bound, B, keys.shape[0] * W)
            column_lse = lax.dynamic_slice_in_dim(psum_logsumexp(of_positives, axis_name, shift), device * b, b)
            loss = jnp.sum(row_lse)
        else:
            loss, statistics = summed_logsumexp(queries, keys, scale, **options)
    else:
        row_lse, column_lse, statistics = ring_similarity_logsumexp(
            queries, keys, scale, key_labels=candidate_labels(own_labels), positives=jnp.arange(b), columns=symmetric,
            bidirectional=key_exchange == "bidirectional_ring", order=ring, **options)
        loss = jnp.sum(row_lse)
        if symmetric:
            column_lse = column_lse[:b]

    positive_logits = scale * jnp.sum(queries.astype(jnp.float32) * positives.astype(jnp.float32), axis=-1)  # [b]
    loss -= jnp.sum(positive_logits)
    if symmetric:
        loss = (loss + jnp.sum(column_lse - positive_logits)) / 2
    return loss / B, metric_sums(positive_logits, statistics, scale, B, num_keys=(texts_per_example - 1) * B)


def metric_sums(
    positive_logits: jax.Array,  # [b]
    statistics: RowStatistics,  # of [b]
    scale: jax.Array | float,
    B: int,
    num_keys: int,
) -> dict[str, jax.Array]:
    """Means over the B rows of the batch, as this device's share of each; batch_metrics says what they are."""
    hardest = statistics.hardest_negative
    has_negative = hardest != -jnp.inf
    of_rows = {
        "accuracy_at_1": positive_logits > hardest,
        "positive_similarity": positive_logits / scale,
        "hardest_negative_similarity": jnp.where(has_negative, hardest, 0.0) / scale,
        "share_left_out": statistics.num_left_out / num_keys,
        "share_with_negative": has_negative,
    }
    return {name: jnp.sum(values.astype(jnp.float32)) / B for name, values in of_rows.items()}


def batch_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The logged metrics of a batch, from the sums of contrastive_loss over all devices.

    accuracy_at_1: share of the queries whose own positive is above all negatives; positive_similarity and
    hardest_negative_similarity: mean cosines (of the queries that have a negative, and 0 if none has);
    share_left_out: share of all pairs of query and key that are left out as false negatives.
    """
    share_with_negative = sums["share_with_negative"]
    hardest = sums["hardest_negative_similarity"] / jnp.where(share_with_negative > 0, share_with_negative, 1.0)
    metrics = sums | {"hardest_negative_similarity": hardest}
    del metrics["share_with_negative"]
    return metrics
