"""AdamW with linear warm-up, clipping by global norm and no decay on biases and norms (optax)."""

from typing import Any, Literal

import jax
import optax

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_schedule(kind: Schedule, peak: float, warmup_steps: int, num_steps: int) -> optax.Schedule:
    """Learning rate at step s (from 0): rises linearly to `peak` at `warmup_steps`, then decays to 0 at `num_steps`."""
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


def make_optimizer(
    schedule: optax.Schedule, *, b1: float, b2: float, epsilon: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """clip_norm = 0 turns clipping off. The update rule is optax.adamw's (Loshchilov & Hutter 2019, 1711.05101)."""
    adamw = optax.adamw(
        schedule, b1, b2, epsilon, weight_decay=weight_decay,
        mask=lambda parameters: jax.tree_util.tree_map_with_path(decays, parameters),
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw
