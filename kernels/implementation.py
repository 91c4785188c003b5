"""Which implementation of a kernel runs: a named one fails loudly where it cannot, "auto" says once what it took."""

import functools

import jax
import jax.numpy as jnp
from absl import logging


def choose_implementation(
    kernel: str, implementation: str, allowed: tuple[str, ...], dtype, unsupported: str = ""
) -> str:
    """The implementation to run; ValueError where the named one cannot run on the device being compiled for.

    Args:
      kernel: its name, for the log.
      allowed: the implementations that the kernel has, "auto" ("tpu" on a TPU, "xla" elsewhere) among them.
      dtype: of the operands.
      unsupported: why "tpu" cannot run on these operands, if it cannot: "auto" is then "xla" everywhere.
    """
    if implementation not in allowed:
        raise ValueError(f"implementation={implementation!r} is none of {', '.join(allowed)}")
    kind = device_kind()
    on_tpu = kind.startswith("TPU")
    if implementation == "auto":
        implementation = "tpu" if on_tpu and not unsupported else "xla"
        _log_choice(kernel, implementation, f"{kind}: {unsupported}" if on_tpu and unsupported else kind)
    if implementation == "tpu" and not on_tpu:
        raise ValueError(f"implementation='tpu' cannot run on {kind!r}: use 'auto', 'xla' or 'tpu_interpret'")
    if implementation == "tpu" and kind in ("TPU v2", "TPU v3") and dtype != jnp.float32:
        raise ValueError(f"implementation='tpu' takes float32 operands on a {kind}, not {dtype}: its Mosaic "
                         "kernels have no bfloat16 matrix operand; cast them to float32")
    if implementation in ("tpu", "tpu_interpret") and unsupported:
        raise ValueError(f"implementation={implementation!r}: {unsupported}; use 'auto' or 'xla'")
    return implementation


def device_kind() -> str:
    """The kind of device being compiled for: the mesh's inside shard_map (it may be absent here), else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


@functools.cache
def _log_choice(kernel: str, implementation: str, kind: str) -> None:
    logging.info("%s: implementation=%s on %s", kernel, implementation, kind)
