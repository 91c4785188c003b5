"""Distillation: the student learns the embeddings of a frozen teacher, or a projection of them.

    L = sum_k mean over batch and dimensions of (student(x_k) - V teacher(x_0))^2

With one text per example and the principal axes of the teacher's embeddings as V, this is homomorphic projective
distillation (HPD; Zhao et al. 2022, 2203.07687). With a sentence x_0, its translation x_1 and V = 1, it is multilingual
distillation (Reimers and Gurevych 2020, 2004.09813). L_CD, which compares with a queue, is in sct.py.

Legend: B examples in the global batch, b on this device, p packing blocks on this device, K texts per example, D and
D_t widths of the student's and the teacher's embeddings, n rows of a sample.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from model.pooling import normalize
from sharding.layout import DEVICES, SPLIT, WHOLE
from training.objectives.objective import Embedded, Objective, split_texts


def mse_objective(
    width: int, teacher_width: int, *, normalize_teacher: bool, projection: np.ndarray | None
) -> Objective:
    """Mean squared error, in float32. Raises ValueError if the widths do not fit.

    Args:
      normalize_teacher: the teacher's embeddings are scaled to unit length first.
      projection: V^T [D_t, D], or None if the student learns the teacher's own embeddings.
    """
    target_width = teacher_width if projection is None else projection.shape[1]
    if width != target_width:
        raise ValueError(f"the student's embeddings have {width} numbers, their targets {target_width}: give the "
                         f"student a head with --dense={target_width}, or the targets its width with --teacher_pca")

    def loss(parameters, memory, embedded: Embedded):
        if embedded.texts_per_example > 2:
            raise ValueError("the mean squared error takes a text and its translation, and an example has "
                             f"{embedded.texts_per_example} texts: give --hard_negatives=false for triplets")
        students = split_texts(embedded.embeddings, embedded.texts_per_example)  # [K, b, D]
        targets = targets_of_first_texts(embedded)
        targets = normalize(targets) if normalize_teacher else targets
        if projection is not None:
            targets = jnp.matmul(targets, memory["projection"], precision=lax.Precision.HIGHEST)
        B = targets.shape[0] * lax.axis_size(DEVICES)
        errors = jnp.sum((students - targets[None]) ** 2, axis=(1, 2)) / (B * width)  # [K]
        return jnp.sum(errors), (dict(zip(("mse", "translation_mse"), errors)), memory)

    memory = {} if projection is None else {"projection": jnp.asarray(projection, jnp.float32)}
    return Objective(loss=loss, memory=lambda _: memory, memory_axes=dict.fromkeys(memory, (None, None)))


def targets_of_first_texts(embedded: Embedded) -> jax.Array:
    """The teacher's embeddings of the examples' first texts [b, D_t], out of those of their first n."""
    slots, targets = embedded.embeddings.shape[1], embedded.targets
    texts_stored = embedded.texts_per_example * targets.shape[1] // slots  # n
    return split_texts(targets, texts_stored)[0]


def principal_axes(
    sample: np.ndarray,  # [n, D_t] float32
    count: int,
    mesh: Mesh,
) -> tuple[np.ndarray, float]:
    """V^T [D_t, count] float32, columns by falling variance, and the share of the variance that they hold.

    Mean and covariance are summed over the devices, each with its part of the sample; the eigenvectors of the
    covariance are taken on the host, in float64. The sign of an axis makes its largest component positive. The mean is
    subtracted here, to find the axes, and nowhere else (the published targets are V e).

    Raises:
      ValueError: more axes than the sample has rows, or than the embeddings have numbers.
    """
    rows, width = sample.shape
    if count > min(rows, width):
        raise ValueError(f"teacher_pca={count} is more than a sample of {rows} embeddings of {width} numbers has axes")
    rows_padded = -(-rows // mesh.size) * mesh.size
    # Centred on the first row, so that float32 sums do not lose the variance beside a large mean; zeros add nothing.
    centred = np.zeros((rows_padded, width), np.float32)
    centred[:rows] = sample - sample[:1]

    def on_each_device(part):
        products = jnp.matmul(part.T, part, precision=lax.Precision.HIGHEST)
        return lax.psum((jnp.sum(part, axis=0), products), DEVICES)

    sums = jax.shard_map(on_each_device, mesh=mesh, in_specs=SPLIT, out_specs=WHOLE)
    sharding = NamedSharding(mesh, SPLIT)
    split = jax.make_array_from_callback(centred.shape, sharding, lambda index: centred[index])
    total, products = (np.asarray(x, np.float64) for x in jax.device_get(jax.jit(sums)(split)))
    covariance = products / rows - np.outer(total / rows, total / rows)
    variances, axes = np.linalg.eigh(covariance)
    axes = axes[:, ::-1][:, :count]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])
    share = variances[::-1][:count].sum() / variances.sum()
    return (axes * signs).astype(np.float32), float(share)
