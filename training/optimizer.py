"""AdamW with linear warm-up, clipping by global norm and no decay on biases and norms (optax)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from training.settings import OptimizerSettings


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Learning rate at step s (from 0): rises linearly until `warmup_steps`, then decays to 0 at `num_steps`."""
    kind, peak = settings.schedule, settings.learning_rate
    warmup_steps, num_steps = settings.warmup_steps, settings.num_steps
    if warmup_steps >= num_steps and kind != "constant":
        raise ValueError(f"warmup_steps={warmup_steps} leaves nothing of num_steps={num_steps} to decay over")
    decay_steps = num_steps - warmup_steps
    after = {
        "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps),
        "constant": lambda: optax.constant_schedule(peak),
    }[kind]()
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def decays(path: tuple, _: Any) -> bool:
    """Whether weight decay applies: not to biases and not to LayerNorm's scales."""
    name = path[-1].key
    return not (name.endswith("bias") or name.endswith("scale"))


def make_optimizer(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW: p <- p - rate (m' / (sqrt(v') + epsilon) + weight_decay p) (Loshchilov & Hutter 2019, 1711.05101).

    m' = m / (1 - b1^t) and v' = v / (1 - b2^t), or m and v themselves without bias correction, as BERT was trained and
    SCT is. clip_norm = 0 turns clipping by the global norm off.
    """
    scale_by_adam = optax.scale_by_adam if settings.adam_bias_correction else scale_by_uncorrected_adam
    adamw = optax.chain(
        scale_by_adam(settings.adam_b1, settings.adam_b2, settings.adam_epsilon),
        optax.add_decayed_weights(settings.weight_decay, lambda tree: jax.tree_util.tree_map_with_path(decays, tree)),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw) if settings.clip_norm else adamw


def scale_by_uncorrected_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + epsilon) of the moments as they are; optax has it with bias correction only."""

    def update(gradient, state, parameters=None):
        del parameters
        m = optax.tree.update_moment(gradient, state.mu, b1, 1)
        v = optax.tree.update_moment(gradient, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), m, v)
        return updates, optax.ScaleByAdamState(state.count + 1, m, v)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)
