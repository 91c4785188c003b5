"""One training step: packed rows in, updated parameters out.

Legend: P = packing blocks of the global batch, p = blocks on this device, R = rows a block, L = tokens a row,
T = texts a block, d = embedding width.
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
from training.losses import KeyExchange, contrastive_loss


class TrainState(NamedTuple):
    step: jax.Array  # int32 scalar: steps done
    parameters: Any  # float32 tree of model/parameters.py
    optimizer: Any  # optax state


def initial_state(parameters: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters))


def make_loss_and_gradient(
    model: ModelConfig,
    mesh: Mesh,
    *,
    texts_per_example: int,
    scale: float,
    symmetric: bool,
    dropout_seed: int | None,
    dtype: jnp.dtype,
    remat: bool,
    implementation: str,
    key_exchange: KeyExchange = "all_gather",
) -> Callable[[Any, PackedTexts, jax.Array], tuple[jax.Array, Any]]:
    """(parameters, packed [P, ...], step) -> mean loss over the global batch and its exact gradient, replicated.

    Each device encodes its own blocks and compares them with the keys of all devices. Its loss is a share of the global
    mean, so the one psum of loss and gradient at the end makes both exact on any number of devices.
    """

    def on_each_device(parameters, packed: PackedTexts, step):
        blocks = packed.tokens.shape[0]

        def share_of_loss(parameters):
            embeddings = embed(
                parameters, model, packed, dtype=dtype, remat=remat,
                dropout=None if dropout_seed is None else DropoutSeed(dropout_seed, step),
                first_block=lax.axis_index(DATA_AXIS) * blocks,
            )  # [p, T, d]
            with jax.named_scope("contrastive_loss"):
                return contrastive_loss(
                    embeddings, packed.text_ids, texts_per_example=texts_per_example, scale=scale, symmetric=symmetric,
                    axis_name=DATA_AXIS, key_exchange=key_exchange, dtype=dtype, implementation=implementation,
                )

        share, gradient = jax.value_and_grad(share_of_loss)(parameters)
        with jax.named_scope("reduce_gradients"):
            return lax.psum((share, gradient), DATA_AXIS)

    parameter_specs = partition_specs(declare(model), AxisRules())
    return jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(parameter_specs, PartitionSpec(DATA_AXIS), PartitionSpec()),
        out_specs=(PartitionSpec(), parameter_specs), check_vma=False,
    )


def make_train_step(
    loss_and_gradient: Callable, optimizer: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh
) -> Callable[[TrainState, PackedTexts], tuple[TrainState, dict[str, jax.Array]]]:
    """A compiled step: (state, packed) -> (state, {"loss", "gradient_norm", "learning_rate"}); the state is donated.

    Two programs, as the first is compiled anew for each number of rows, and the second, the optimizer, is not.
    """
    loss_and_gradient = jax.jit(loss_and_gradient)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def update(state: TrainState, gradient: Any):
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
        metrics = {"gradient_norm": optax.tree.norm(gradient), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, parameters, optimizer_state), metrics

    def train_step(state: TrainState, packed: PackedTexts):
        loss, gradient = loss_and_gradient(state.parameters, packed, state.step)
        state, metrics = update(state, gradient)
        return state, {"loss": loss} | metrics

    return train_step
