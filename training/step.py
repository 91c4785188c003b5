"""One training step: packed rows in, updated parameters out; what it minimises is an objective (objective.py).

Legend: P packing blocks in the global batch, p on this device, R rows per block, L tokens per row, T texts per block,
D embedding width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.packing import PackedTexts
from model.config import ModelConfig
from model.dropout import DropoutSeed
from model.parameters import declare, partition_specs
from model.pooling import embed
from sharding.mesh import DATA_AXIS
from sharding.rules import AxisRules
from training.gradient_caching import encode_in_parts, value_and_grad_in_parts
from training.objectives.objective import Embedded, Objective, StepBatch

REFERENCE_SEED = 0x5C7  # changes the seed, so that the references have dropout masks of their own


class TrainState(NamedTuple):
    step: jax.Array  # int32 scalar: steps done
    parameters: Any  # float32: the model's (model/parameters.py) and the objective's
    optimizer: Any  # optax state
    memory: Any  # the objective's


def initial_state(parameters: Any, optimizer: optax.GradientTransformation, objective: Objective) -> TrainState:
    return TrainState(
        jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters), objective.memory(parameters))


def state_shardings(objective: Objective, mesh: Mesh) -> TrainState:
    """Shardings of the train state, a prefix of its tree: replicated, except for memory that the objective splits."""
    replicated = NamedSharding(mesh, PartitionSpec())
    memory = {name: NamedSharding(mesh, spec) for name, spec in objective.memory_specs.items()}
    return TrainState(replicated, replicated, replicated, memory)


def make_loss_and_gradient(
    model: ModelConfig,
    mesh: Mesh,
    objective: Objective,
    *,
    texts_per_example: int,
    dropout_seed: int | None,
    dtype: jnp.dtype,
    remat: bool,
    attention_implementation: str = "auto",
    encode_blocks: int = 0,
) -> Callable[[Any, Any, StepBatch, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array], Any]]:
    """(parameters, memory, batch, step) -> mean loss over the global batch, its exact gradient, metrics, memory.

    Each device encodes its own blocks; the objective compares them with those of all devices. Its loss is a share of
    the global mean, so the one psum of loss, gradient and metric sums at the end makes all exact on any number of
    devices. encode_blocks says how many of its p blocks a device encodes at a time (gradient_caching.py); 0: all.
    """

    def on_each_device(parameters, memory, batch: StepBatch, step):
        packed, blocks = batch.packed, batch.packed.tokens.shape[0]

        def encode(parameters, part: PackedTexts, first_block, seed=dropout_seed):  # first_block: among this device's
            return embed(
                parameters, model, part, dtype=dtype, remat=remat,
                dropout=None if seed is None else DropoutSeed(seed, step),
                first_block=lax.axis_index(DATA_AXIS) * blocks + first_block,
                attention_implementation=attention_implementation,
            )  # [p, T, D]

        def share_of_loss(parameters, embeddings):
            seen = Embedded(embeddings, references, batch.targets, packed.text_ids, texts_per_example, step)
            if references is None and objective.reference:  # without dropout both are the same
                seen = seen._replace(references=lax.stop_gradient(embeddings))
            return objective.loss(parameters, memory, seen)

        references = None
        if objective.reference == "momentum" or (objective.reference and dropout_seed is not None):
            seed = None if dropout_seed is None else dropout_seed ^ REFERENCE_SEED
            with jax.named_scope("references"):
                references = lax.stop_gradient(encode_in_parts(
                    functools.partial(encode, seed=seed),
                    memory["momentum"] if objective.reference == "momentum" else parameters,
                    packed, encode_blocks or blocks,
                ))
        if encode_blocks in (0, blocks):
            of_parameters = jax.value_and_grad(lambda p: share_of_loss(p, encode(p, packed, 0)), has_aux=True)
            (share, (sums, new_memory)), gradient = of_parameters(parameters)
        else:
            (share, (sums, new_memory)), gradient = value_and_grad_in_parts(
                encode, share_of_loss, parameters, packed, encode_blocks)
        with jax.named_scope("reduce_gradients"):
            loss, gradient, sums = lax.psum((share, gradient, sums), DATA_AXIS)
        return loss, gradient, objective.metrics(sums), new_memory

    parameter_specs = partition_specs(declare(model) | objective.parameters, AxisRules())
    return jax.shard_map(
        on_each_device, mesh=mesh,
        in_specs=(parameter_specs, objective.memory_specs, PartitionSpec(DATA_AXIS), PartitionSpec()),
        out_specs=(PartitionSpec(), parameter_specs, PartitionSpec(), objective.memory_specs), check_vma=False,
    )


def make_train_step(
    loss_and_gradient: Callable, optimizer: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh,
    objective: Objective,
) -> Callable[[TrainState, StepBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """A compiled step: (state, batch) -> (state, metrics); the state is donated.

    The metrics are "loss", "gradient_norm", "learning_rate" and those of the objective.
    It is two programs: the gradient is compiled again for each number of rows, the optimizer only once.
    """
    loss_and_gradient, shardings = jax.jit(loss_and_gradient, donate_argnums=1), state_shardings(objective, mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, shardings.step))
    def update(state: TrainState, gradient: Any):
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
        memory = state.memory
        if objective.reference == "momentum":
            mixed = optax.incremental_update(parameters, memory["momentum"], 1 - objective.momentum)
            memory = memory | {"momentum": mixed}
        metrics = {"gradient_norm": optax.tree.norm(gradient), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, parameters, optimizer_state, memory), metrics

    def train_step(state: TrainState, batch: StepBatch):
        loss, gradient, of_batch, memory = loss_and_gradient(state.parameters, state.memory, batch, state.step)
        state, metrics = update(state._replace(memory=memory), gradient)
        return state, {"loss": loss} | metrics | of_batch

    return train_step
