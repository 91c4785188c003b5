"""lse_i = log sum_j exp(s_ij), the same of s_ref, and gap_i = sum_j softmax(s_ref_i)_j (s_ref_ij - s_ij): plain jnp.

It forms [b, k], and its gradient is JAX's own: the form that is plainly right, for small problems and for tests.
"""

import jax
import jax.numpy as jnp


def queue_sums(
    references: jax.Array,  # [b, D_r]
    embeddings: jax.Array,  # [b, D]
    reference_queue: jax.Array,  # [k, D_r]
    queue: jax.Array,  # [k, D]
    num_valid: jax.Array | None,  # [] int32
    *,
    reference_scale: float,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # reference_lse, lse, gap, each [b] float32
    valid = jnp.arange(queue.shape[0]) < (queue.shape[0] if num_valid is None else num_valid)  # [k]
    any_valid = jnp.any(valid)
    reference_scores = reference_scale * _products(references, reference_queue, valid)
    scores = scale * _products(embeddings, queue, valid)

    def over_valid(function, scores):
        """The function of the valid scores; of all, which are zero, where none is valid: a value to be discarded."""
        return function(jnp.where(valid[None, :] | ~any_valid, scores, -jnp.inf), axis=1)

    probabilities = over_valid(jax.nn.softmax, reference_scores)
    gap = jnp.sum(probabilities * jnp.where(valid[None, :], reference_scores - scores, 0.0), axis=1)
    reference_lse, lse = (jnp.where(any_valid, over_valid(jax.nn.logsumexp, side), -jnp.inf)
                          for side in (reference_scores, scores))
    return reference_lse, lse, gap


def _products(rows, queue, valid) -> jax.Array:  # [b, k] float32, 0 where the queue row is not valid
    return jnp.einsum("id,jd->ij", rows, jnp.where(valid[:, None], queue, 0), precision=jax.lax.Precision.HIGHEST,
                      preferred_element_type=jnp.float32)
