"""row_lse_i = log sum_j exp(s_ij), column_lse_j = log sum_i exp(s_ij), s_ij = scale <q_i, k_j>: plain jnp.

It forms [b, N], and JAX derives the gradient. This form is easy to check; it is for small problems and tests.
"""

import jax
import jax.numpy as jnp

from kernels.contrastive.labels import PairLabels, is_left_out
from kernels.contrastive.tile import RowStatistics, add_statistics, no_statistics


def similarity_logsumexp(
    queries: jax.Array,  # [b, D]
    keys: jax.Array,  # [N, D]
    scale: jax.Array,  # [] float32
    labels: PairLabels | None,
    *,
    columns: bool,
) -> tuple[jax.Array, jax.Array | None, RowStatistics]:  # [b], [N], float32 (float64 for float64 operands)
    scores = scale * jnp.einsum(
        "id,jd->ij", queries, keys,
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.promote_types(queries.dtype, jnp.float32),
    )
    fields = None
    if labels is not None:
        row_fields = [labels.rows[:, None, field] for field in range(3)]
        key_fields = [labels.keys[None, :, field] for field in range(2)]
        fields = row_fields, key_fields, jnp.arange(keys.shape[0], dtype=jnp.int32)[None, :]
        scores = jnp.where(is_left_out(*fields), -jnp.inf, scores)
    found = add_statistics(no_statistics((queries.shape[0], 1)), jax.lax.stop_gradient(scores), fields)
    statistics = RowStatistics(*[value[:, 0] for value in found])
    return _logsumexp(scores, axis=1), _logsumexp(scores, axis=0) if columns else None, statistics


def _logsumexp(scores: jax.Array, axis: int) -> jax.Array:
    """log sum exp; without any candidate the value is -inf and the gradient zero (not NaN)."""
    occupied = jnp.any(scores != -jnp.inf, axis=axis, keepdims=True)
    lse = jax.nn.logsumexp(jnp.where(occupied, scores, 0.0), axis=axis)
    return jnp.where(jnp.squeeze(occupied, axis), lse, -jnp.inf)
