"""An objective: the loss that a step minimises, with parameters and memory of its own.

contrastive (contrastive.py), sct and cd (sct.py) and mse (mse.py) are objectives. A step
(training/step.py) encodes the texts and hands their embeddings to the objective, so that packing, dropout, gradient
caching, sharding and the optimizer are the same for all.

Legend: B examples in the global batch, b on this device, P packing blocks in the global batch, p on this device,
m examples per block, K texts per example, T = K m texts per block, n texts per example that the teacher has embedded,
D and D_t widths of the encoder's and the teacher's embeddings.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from data.packing import PackedTexts
from model.parameters import Tree

Reference = Literal["own", "momentum"]


class StepBatch(NamedTuple):
    """The input of a step, [P, ...] on the mesh."""

    packed: PackedTexts
    targets: jax.Array | None = None  # [P, n m, D_t] float32: the teacher's embeddings of each example's first n texts


class Embedded(NamedTuple):
    """What an objective sees on one device."""

    embeddings: jax.Array  # [p, T, D] float32
    references: jax.Array | None  # [p, T, D] float32, of the reference encoder: no gradient flows into them
    targets: jax.Array | None  # [p, n m, D_t] float32
    text_ids: jax.Array  # [p, T, 2] uint32
    texts_per_example: int  # K
    step: jax.Array  # [] int32


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as this device's share of the global mean, so that sums over devices make loss and gradient exact.

    Memory is what passes from step to step beside the parameters, a dict of trees: queues, a momentum encoder, a fixed
    projection. It is part of the train state, so it is saved and restored with it.
    """

    loss: Callable[[Any, Any, Embedded], tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]
    """(parameters, memory, embedded) -> this device's share of the loss, (its shares of sums, the memory afterwards)"""
    metrics: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = lambda sums: sums
    """the sums over devices -> what is logged"""
    parameters: Tree = dataclasses.field(default_factory=dict)
    """declarations (model/parameters.py) of parameters that are trained with the model but not exported"""
    memory: Callable[[Tree], dict] = lambda parameters: {}  # parameters -> the memory before the first step
    memory_axes: dict[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)
    """the axes of each array of the memory, keys of AXES in sharding/layout.py; memory["momentum"] has its own"""
    reference: Reference | None = None  # the encoder of `references`: the one in training, or memory["momentum"]
    momentum: float = 0.0  # memory["momentum"] after a step = momentum * itself + (1 - momentum) * the parameters


def split_texts(per_text: jax.Array, texts_per_example: int) -> jax.Array:
    """[p, K m, ...] in the block's slot order (queries, positives, negatives) -> [K, b, ...]."""
    p, slots = per_text.shape[:2]
    m = slots // texts_per_example
    stacked = per_text.reshape(p, texts_per_example, m, *per_text.shape[2:])
    return jnp.moveaxis(stacked, 1, 0).reshape(texts_per_example, p * m, *per_text.shape[2:])


def add_objectives(first: Objective, second: Objective) -> Objective:
    """first + second; their parameters, memories and metrics must have different names."""

    def loss(parameters, memory, embedded):
        first_share, (first_sums, memory) = first.loss(parameters, memory, embedded)
        second_share, (second_sums, memory) = second.loss(parameters, memory, embedded)
        return first_share + second_share, (first_sums | second_sums, memory)

    return Objective(
        loss=loss, metrics=lambda sums: second.metrics(first.metrics(sums)),
        parameters=first.parameters | second.parameters,
        memory=lambda parameters: first.memory(parameters) | second.memory(parameters),
        memory_axes=first.memory_axes | second.memory_axes,
        reference=first.reference or second.reference, momentum=first.momentum or second.momentum,
    )
