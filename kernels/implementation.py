"""Chooses the implementation of a kernel: a named one raises if it cannot run, "auto" logs its choice once."""

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
    dtype: jnp.dtype,
    unsupported: Callable[[str], str | None] = lambda name: None,
) -> str:
    """The implementation to run; ValueError if the named one cannot run on the device that is compiled for.

    Args:
      kernel: its name, for the log.
      allowed: the implementations that the kernel has, "auto" ("tpu" on a TPU, "xla" elsewhere) among them.
      dtype: of the operands.
      unsupported: why "tpu" or "hopper" cannot run on these operands, or None. If "tpu" cannot, "auto" is "xla".
    """
    if implementation not in allowed:
        raise ValueError(f"implementation={implementation!r} is none of {', '.join(allowed)}")
    kind = device_kind()
    runs_here = {"tpu": kind.startswith("TPU"), "hopper": bool(HOPPER.search(kind))}
    if implementation == "auto":
        reason = unsupported("tpu") if runs_here["tpu"] else None
        implementation = "tpu" if runs_here["tpu"] and reason is None else "xla"
        _log_choice(kernel, implementation, f"{kind} (not tpu: {reason})" if reason else kind)
    if not runs_here.get(implementation, True):
        raise ValueError(f"implementation={implementation!r} cannot run on {kind!r}: use 'auto', 'xla' or "
                         f"'{implementation}_interpret'")
    if (reason := unsupported(implementation.removesuffix("_interpret"))) is not None:
        raise ValueError(f"implementation={implementation!r}: {reason}; use 'auto' or 'xla'")
    if implementation == "tpu" and kind in ("TPU v2", "TPU v3") and dtype != jnp.float32:
        raise ValueError(f"implementation='tpu' takes float32 operands on a {kind}, not {dtype}: its Mosaic "
                         "kernels have no bfloat16 matrix operand; cast them to float32")
    return implementation


def device_kind() -> str:
    """The kind of device compiled for: the mesh's inside shard_map (it may be absent here), else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


@functools.cache
def _log_choice(kernel: str, implementation: str, kind: str) -> None:
    level = logging.DEBUG if kind == "cpu" else logging.INFO  # on a CPU there is no choice
    logging.log(level, "%s: implementation=%s on %s", kernel, implementation, kind)
