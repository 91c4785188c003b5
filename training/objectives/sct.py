"""Self-supervised cross-view training (SCT; Limkonchotiwat et al. 2023, TACL), and its loss with a teacher.

    zA = norm(h(f(xA)))   zB = norm(h(f(xB)))                    the student, two views of each sentence
    rA, rB                                                       references, normalised, without gradient
    QA' = [QA; rA]        QB' = [QB; rB]                         queues, with the batch's own references
    L = mean_i KL(softmax(rA_i QA'^T / tau_ref) || softmax(zB_i QA'^T / tau))
      + mean_i KL(softmax(rB_i QB'^T / tau_ref) || softmax(zA_i QB'^T / tau))

The references are the encoder's own embeddings with dropout masks of their own (or a momentum encoder's). With a
teacher they are its frozen embeddings, and h is the identity. f is the encoder with its pooling and dense heads; h is
used only in training.

A queue is a buffer of N / B + 1 slots of B rows. Step t overwrites the oldest slot, (t - 1) mod the number of slots,
before the loss is computed. The buffer then holds the newest N rows of the steps before and those of the batch, and
nothing moves. The rows of a slot are split over the devices as the batch is, so every number of devices holds the same
rows.

Legend: B examples in the global batch, b on this device, N rows of a queue (queue_size), D embedding width. There are
one or two queues of N / B + 1 slots.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.queue_kl.api import queue_kl
from model.encoder import dense
from model.parameters import Parameter, Tree, gather_weights, one_layer, uniform
from model.pooling import normalize
from sharding.layout import DEVICES
from training.objectives.objective import Embedded, Objective, Reference, split_texts

QUEUE_AXES = (None, None, "batch", "embedding")  # [queues, slots, B, D]
HEAD_BLOCKS = 3
HEAD_FACTOR = 10  # a block widens D to 10 D and narrows it again


class QueueOptions(NamedTuple):
    size: int  # N rows, a multiple of the global batch; 0: only the batch's own references
    num_queues: int  # 2: one per view; 1: the first view's queue, for both terms
    reference_temperature: float
    temperature: float
    weight: float  # of each of the two terms: 1 in the published code, 1/2 in the paper
    dtype: jnp.dtype  # of queues and products
    implementation: str
    seed: int  # of the random rows that fill the queues before the first step


def sct_objective(
    width: int, global_batch_size: int, options: QueueOptions, *, head: bool, reference: Reference, momentum: float
) -> Objective:
    """L_SCT. Raises ValueError for a queue that the batch does not divide."""
    declarations = {"sct_head": declare_head(width)} if head else {}

    def loss(parameters, memory, embedded: Embedded):
        views = split_texts(embedded.embeddings, embedded.texts_per_example)
        references = normalize(split_texts(embedded.references, embedded.texts_per_example))
        student = normalize(apply_head(parameters["sct_head"], views, options.dtype) if head else views)
        share, similarity, queues = cross_view_loss(student, references, memory["queues"], embedded.step, options)
        sums = {"sct_loss": share, "view_similarity": similarity}
        return share, (sums, memory | {"queues": queues})

    def memory(parameters):
        momentum_encoder = {"momentum": jax.tree.map(jnp.copy, parameters)} if reference == "momentum" else {}
        return {"queues": initial_queues(global_batch_size, width, options)} | momentum_encoder

    return Objective(loss=loss, parameters=declarations, memory=memory, memory_axes={"queues": QUEUE_AXES},
                     reference=reference, momentum=momentum)


def teacher_objective(
    width: int, teacher_width: int, global_batch_size: int, options: QueueOptions, views_of_one_text: bool = False
) -> Objective:
    """L_CD: the same loss with the teacher's embeddings as references, and queues of them.

    If the views are changed copies of one text, the teacher's embedding of that text is the reference of both.
    Raises ValueError if student and teacher have different widths.
    """
    if width != teacher_width:
        raise ValueError(f"the student's embeddings have {width} numbers, the teacher's {teacher_width}: give the "
                         f"student a head with --dense={teacher_width}")

    def loss(parameters, memory, embedded: Embedded):
        views = normalize(split_texts(embedded.embeddings, embedded.texts_per_example))
        stored = embedded.texts_per_example * embedded.targets.shape[1] // embedded.embeddings.shape[1]
        if stored == 1 and not views_of_one_text:
            raise ValueError("cross-view distillation takes the teacher's embeddings of both views, but only those "
                             "of each example's first text are stored: run `main.py teach` with --texts=all")
        references = normalize(split_texts(embedded.targets, stored))
        references = jnp.broadcast_to(references, views.shape)
        share, similarity, queues = cross_view_loss(views, references, memory["teacher_queues"], embedded.step, options)
        sums = {"cd_loss": share, "teacher_similarity": similarity}
        return share, (sums, memory | {"teacher_queues": queues})

    return Objective(
        loss=loss, memory=lambda _: {"teacher_queues": initial_queues(global_batch_size, teacher_width, options)},
        memory_axes={"teacher_queues": QUEUE_AXES},
    )


def cross_view_loss(
    views: jax.Array,  # [2, b, D] float32 of unit norm: student
    references: jax.Array,  # [2, b, D] float32 of unit norm, without gradient
    queues: jax.Array,  # [queues, slots, b, D]
    step: jax.Array,
    options: QueueOptions,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This device's shares of L and of the mean of <zB, rA> and <zA, rB>, and the queues with the batch in them."""
    if views.shape[0] != 2:
        raise ValueError(f"cross-view training takes two views of each sentence, and an example has {views.shape[0]} "
                         "texts: give --views, or --hard_negatives=false for triplets")
    B = views.shape[1] * lax.axis_size(DEVICES)
    references = lax.stop_gradient(references)
    queues = push(queues, references, step)
    share = similarity = 0.0
    for view in (0, 1):
        queue = queues[view % options.num_queues].reshape(-1, queues.shape[-1])
        divergence = queue_kl(
            references[view].astype(options.dtype), views[1 - view].astype(options.dtype), queue,
            reference_temperature=options.reference_temperature, temperature=options.temperature,
            axis_name=DEVICES, unit_norm=True, implementation=options.implementation,
        )
        share += options.weight * jnp.sum(divergence) / B
        similarity += jnp.sum(references[view] * views[1 - view]) / (2 * B)
    return share, similarity, queues


def push(queues: jax.Array, references: jax.Array, step: jax.Array) -> jax.Array:
    """The queues [queues, slots, b, D] with references [2, b, D] (one for each queue) in place of the oldest slot."""
    num_queues, slots = queues.shape[:2]
    newest = references[:num_queues, None].astype(queues.dtype)
    return lax.dynamic_update_slice(queues, newest, (0, (step + slots - 1) % slots, 0, 0))


def initial_queues(global_batch_size: int, width: int, options: QueueOptions) -> jax.Array:
    """Random rows of unit norm, [queues, slots, B, D]."""
    if options.size % global_batch_size:
        raise ValueError(f"queue_size={options.size} is not a multiple of global_batch_size={global_batch_size}: the "
                         "queue adds and drops one batch at a time")
    shape = (options.num_queues, options.size // global_batch_size + 1, global_batch_size, width)
    return normalize(jax.random.normal(jax.random.key(options.seed), shape)).astype(options.dtype)


def declare_head(width: int) -> Tree:
    """h: three blocks Linear(D, 10 D) - ReLU - Linear(10 D, D), stacked; initial values are torch.nn.Linear's."""
    inner = HEAD_FACTOR * width

    def linear(inputs: int, outputs: int, axes: tuple[str, str]) -> tuple[Parameter, Parameter]:
        initial = uniform(1 / math.sqrt(inputs))
        return (Parameter((HEAD_BLOCKS, inputs, outputs), ("layers", *axes), initial),
                Parameter((HEAD_BLOCKS, outputs), ("layers", axes[1]), initial))

    up_kernel, up_bias = linear(width, inner, ("hidden", "intermediate"))
    down_kernel, down_bias = linear(inner, width, ("intermediate", "hidden"))
    return {"up_kernel": up_kernel, "up_bias": up_bias, "down_kernel": down_kernel, "down_bias": down_bias}


def apply_head(parameters: Tree, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """h(x) of x [..., D], computed in `dtype`, as float32."""

    declared = one_layer(declare_head(x.shape[-1]))

    def block(x, shares):
        weights = gather_weights(shares, declared, dtype)
        x = jax.nn.relu(dense(x, weights["up_kernel"], weights["up_bias"]))
        return dense(x, weights["down_kernel"], weights["down_bias"]), None

    return lax.scan(block, x.astype(dtype), parameters)[0].astype(jnp.float32)
