"""lse_i = log sum_j exp(s_ij), the same of s_ref, and gap_i = sum_j softmax(s_ref_i)_j (s_ref_ij - s_ij): plain jnp.

It forms [b, k], and its gradient is JAX's own: the form that is plainly right, for small problems and for tests.
"""

import jax
import jax.numpy as jnp


def queue_sums(
    references: jax.Array,  # [b, D]
    embeddings: jax.Array,  # [b, D]
    queue: jax.Array,  # [k, D]
    *,
    reference_scale: float,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # reference_lse, lse, gap, each [b] float32
    reference_scores, scores = reference_scale * _products(references, queue), scale * _products(embeddings, queue)
    gap = jnp.sum(jax.nn.softmax(reference_scores, axis=1) * (reference_scores - scores), axis=1)
    return jax.nn.logsumexp(reference_scores, axis=1), jax.nn.logsumexp(scores, axis=1), gap


def _products(rows, queue) -> jax.Array:  # [b, k] float32
    return jnp.einsum("id,jd->ij", rows, queue, precision=jax.lax.Precision.HIGHEST,
                      preferred_element_type=jnp.float32)
