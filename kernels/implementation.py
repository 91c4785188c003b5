"""Which implementation of a kernel runs: a named one fails loudly where it cannot, "auto" says once what it took."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

HOPPER = re.compile(r"\bG?H(100|200|800|20)\b")


def choose_implementation(
    kernel: str,
    implementation: str,
    allowed: tuple[str, ...],
    dtype,
    hopper_refusal: Callable[[], str | None] = lambda: None,
) -> str:
    """The implementation to run; ValueError where the named one cannot run on the device being compiled for.

    Args:
      kernel: its name, for the log.
      allowed: the implementations that the kernel has, "auto" ("tpu" on a TPU, "hopper" on a Hopper GPU, where the
        kernel has it and takes the operands, "xla" elsewhere) among them.
      dtype: of the operands.
      hopper_refusal: says why "hopper" does not take the operands, or None; called where it might run.
    """
    if implementation not in allowed:
        raise ValueError(f"implementation={implementation!r} is none of {', '.join(allowed)}")
    kind = device_kind()
    on_tpu, on_hopper = kind.startswith("TPU"), bool(HOPPER.search(kind))
    if implementation == "auto":
        has_hopper = on_hopper and "hopper" in allowed
        refusal = hopper_refusal() if has_hopper else None
        implementation = "tpu" if on_tpu else "hopper" if has_hopper and refusal is None else "xla"
        _log_choice(kernel, implementation, kind, refusal)
    for name, runs in (("tpu", on_tpu), ("hopper", on_hopper)):
        if implementation == name and not runs:
            raise ValueError(f"implementation={name!r} cannot run on {kind!r}: use 'auto', 'xla' or '{name}_interpret'")
    if implementation in ("hopper", "hopper_interpret") and (refusal := hopper_refusal()) is not None:
        raise ValueError(f"implementation={implementation!r}: {refusal}")
    if implementation == "tpu" and kind in ("TPU v2", "TPU v3") and dtype != jnp.float32:
        raise ValueError(f"implementation='tpu' takes float32 operands on a {kind}, not {dtype}: its Mosaic "
                         "kernels have no bfloat16 matrix operand; cast them to float32")
    return implementation


def device_kind() -> str:
    """The kind of device being compiled for: the mesh's inside shard_map (it may be absent here), else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


@functools.cache
def _log_choice(kernel: str, implementation: str, kind: str, hopper_refusal: str | None) -> None:
    reason = f" (not hopper: {hopper_refusal})" if hopper_refusal else ""
    logging.info("%s: implementation=%s on %s%s", kernel, implementation, kind, reason)
