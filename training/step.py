"""One training step: packed rows in, updated parameters out; what it minimises is an objective (objective.py).

Legend: P packing blocks in the global batch, p on this device, R rows per block, L tokens per row, T texts per block,
D embedding width.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from data.packing import PackedTexts
from model.config import ModelConfig
from model.dropout import DropoutSeed
from model.parameters import abstract, declare
from model.pooling import embed
from sharding.layout import DEVICES, SPLIT, WHOLE, Layout, partition_spec, shardings, state_spec
from sharding.shares import reduce_gradient
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


def parameter_specs(
    model: ModelConfig, objective: Objective, layout: Layout, kind: Literal["parameters", "optimizer"]
) -> Any:
    """A PartitionSpec for each parameter of model and objective, or for the optimizer's moments of it."""
    return jax.tree.map(state_spec(kind, layout), declare(model) | objective.parameters)


def memory_specs(model: ModelConfig, objective: Objective, layout: Layout) -> dict:
    """PartitionSpecs of the objective's memory; a momentum encoder lies as the parameters do."""
    memory = jax.eval_shape(objective.memory, abstract(declare(model) | objective.parameters))
    return {
        name: parameter_specs(model, objective, layout, "parameters") if name == "momentum"
        else partition_spec(memory[name].shape, objective.memory_axes[name], layout.mesh)
        for name in memory
    }


def state_specs(
    model: ModelConfig, objective: Objective, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """A PartitionSpec for each array of the train state."""
    parameters = abstract(declare(model) | objective.parameters)
    of_optimizer = optax.tree_map_params(
        optimizer, lambda _, spec: spec, jax.eval_shape(optimizer.init, parameters),
        parameter_specs(model, objective, layout, "optimizer"), transform_non_params=lambda _: WHOLE)
    return TrainState(WHOLE, parameter_specs(model, objective, layout, "parameters"), of_optimizer,
                      memory_specs(model, objective, layout))


def make_loss_and_gradient(
    model: ModelConfig,
    layout: Layout,
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
    the global mean, so the sums of loss, gradient and metrics over the devices at the end make all exact on any number
    of devices. The gradient is split as the optimizer's state is. encode_blocks says how many of its p blocks a
    device encodes at a time (gradient_caching.py); 0: all.
    """

    def on_each_device(parameters, memory, batch: StepBatch, step):
        packed, blocks = batch.packed, batch.packed.tokens.shape[0]

        def encode(parameters, part: PackedTexts, first_block, seed=dropout_seed):  # first_block: among this device's
            return embed(
                parameters, model, part, dtype=dtype, remat=remat,
                dropout=None if seed is None else DropoutSeed(seed, step),
                first_block=lax.axis_index(DEVICES) * blocks + first_block,
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
            loss, sums = lax.psum((share, sums), DEVICES)
            gradient = jax.tree.map(reduce_gradient, gradient, parameters_split, moments_split)
        return loss, gradient, objective.metrics(sums), new_memory

    parameters_split = parameter_specs(model, objective, layout, "parameters")
    moments_split = parameter_specs(model, objective, layout, "optimizer")
    memory_split = memory_specs(model, objective, layout)
    return jax.shard_map(
        on_each_device, mesh=layout.mesh, in_specs=(parameters_split, memory_split, SPLIT, WHOLE),
        out_specs=(WHOLE, moments_split, WHOLE, memory_split), check_vma=False,
    )


def make_train_step(
    model: ModelConfig,
    layout: Layout,
    objective: Objective,
    loss_and_gradient: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[[TrainState, StepBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """A compiled step: (state, batch) -> (state, metrics); the state is donated.

    The metrics are "loss", "gradient_norm", "learning_rate" and those of the objective.
    It is two programs: the gradient is compiled again for each number of rows, the optimizer only once.
    """
    loss_and_gradient = jax.jit(loss_and_gradient, donate_argnums=1)
    placed = shardings(state_specs(model, objective, optimizer, layout), layout.mesh)
    moments = shardings(parameter_specs(model, objective, layout, "optimizer"), layout.mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(placed, placed.step))
    def update(state: TrainState, gradient: Any):
        with jax.named_scope("optimizer"):  # each device updates the part whose moments it has
            parameters = lax.with_sharding_constraint(state.parameters, moments)
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, parameters)
            parameters = lax.with_sharding_constraint(optax.apply_updates(parameters, updates), moments)
        memory = state.memory
        if objective.reference == "momentum":
            parameters = lax.with_sharding_constraint(parameters, placed.parameters)  # gathered once, for both
            mixed = optax.incremental_update(parameters, memory["momentum"], 1 - objective.momentum)
            memory = memory | {"momentum": mixed}
        metrics = {"gradient_norm": optax.tree.norm(gradient), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, parameters, optimizer_state, memory), metrics

    def train_step(state: TrainState, batch: StepBatch):
        loss, gradient, of_batch, memory = loss_and_gradient(state.parameters, state.memory, batch, state.step)
        state, metrics = update(state._replace(memory=memory), gradient)
        return state, {"loss": loss} | metrics | of_batch

    return train_step
