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
from training.grad_cache import value_and_grad_in_parts
from training.losses import UNIT_NORM_PRODUCT, KeyExchange, batch_metrics, contrastive_loss


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
    attention_implementation: str = "auto",
    encode_blocks: int = 0,
    key_exchange: KeyExchange = "all_gather",
) -> Callable[[Any, PackedTexts, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]]:
    """(parameters, packed [P, ...], step) -> mean loss over the global batch, its exact gradient, metrics; replicated.

    Each device encodes its own blocks and compares them with the keys of all devices. Its loss is a share of the global
    mean, so the one psum of loss, gradient and metric sums at the end makes all exact on any number of devices.
    encode_blocks says how many of its p blocks it encodes at a time (grad_cache.py); 0: all.
    """
    bound = UNIT_NORM_PRODUCT * abs(scale) if model.normalize else None

    def on_each_device(parameters, packed: PackedTexts, step):
        blocks = packed.tokens.shape[0]

        def encode(parameters, part: PackedTexts, first_block):  # first_block of this device's
            return embed(
                parameters, model, part, dtype=dtype, remat=remat,
                dropout=None if dropout_seed is None else DropoutSeed(dropout_seed, step),
                first_block=lax.axis_index(DATA_AXIS) * blocks + first_block,
                attention_implementation=attention_implementation,
            )  # [p, T, d]

        def share_of_loss(embeddings):
            with jax.named_scope("contrastive_loss"):
                return contrastive_loss(
                    embeddings, packed.text_ids, texts_per_example=texts_per_example, scale=scale, symmetric=symmetric,
                    axis_name=DATA_AXIS, key_exchange=key_exchange, dtype=dtype, bound=bound,
                    implementation=implementation,
                )

        if encode_blocks in (0, blocks):
            of_parameters = jax.value_and_grad(lambda p: share_of_loss(encode(p, packed, 0)), has_aux=True)
            (share, sums), gradient = of_parameters(parameters)
        else:
            (share, sums), gradient = value_and_grad_in_parts(
                encode, share_of_loss, parameters, packed, encode_blocks)
        with jax.named_scope("reduce_gradients"):
            loss, gradient, sums = lax.psum((share, gradient, sums), DATA_AXIS)
        return loss, gradient, batch_metrics(sums)

    parameter_specs = partition_specs(declare(model), AxisRules())
    return jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(parameter_specs, PartitionSpec(DATA_AXIS), PartitionSpec()),
        out_specs=(PartitionSpec(), parameter_specs, PartitionSpec()), check_vma=False,
    )


def make_train_step(
    loss_and_gradient: Callable, optimizer: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh
) -> Callable[[TrainState, PackedTexts], tuple[TrainState, dict[str, jax.Array]]]:
    """A compiled step: (state, packed) -> (state, metrics); the state is donated.

    The metrics are "loss", "gradient_norm", "learning_rate" and those of losses.batch_metrics.
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
        loss, gradient, of_batch = loss_and_gradient(state.parameters, packed, state.step)
        state, metrics = update(state, gradient)
        return state, {"loss": loss} | metrics | of_batch

    return train_step
