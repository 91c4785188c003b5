"""attend: attention within the texts of packed rows, and the choice of its implementation.

Legend: r rows, L tokens per row, D hidden size, h heads, d = D / h.
"""

import functools
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from kernels.attention import reference, xla
from kernels.dropout import DropoutKeys
from kernels.implementation import choose_implementation, device_kind

Implementation = Literal["auto", "reference", "xla", "tpu", "tpu_interpret"]


class _Options(NamedTuple):
    implementation: str
    num_heads: int
    rate: float


def attend(
    qkv: jax.Array,  # [r, L, 3 D] float32 or bfloat16: queries, keys, values; in each, the heads side by side
    segments: jax.Array,  # [r, L] int32: the text of each token of the row
    dropout: DropoutKeys | None = None,  # [r]; None: no dropout
    *,
    num_heads: int,
    rate: float = 0.0,
    implementation: Implementation = "auto",
) -> jax.Array:
    """out = dropout(softmax(q k^T / sqrt(d) over the tokens of the same text)) v, for each head (Vaswani et al. 2017).

    Differentiable in qkv. Unused tokens (segment 0) attend to one another; their results are meaningless but finite.
    Dropout drops probabilities at `rate`, the same ones in every implementation. Scores accumulate in float32.

    Args:
      implementation: "auto" is "tpu" on a TPU if that supports the sizes, else "xla"; a named one raises ValueError
        if it cannot run.

    Returns:
      The attended values [r, L, D], in qkv's dtype, the heads side by side.
    """
    _check(qkv, segments, num_heads)
    chosen = choose_implementation(
        "attend", implementation, get_args(Implementation), qkv.dtype,
        lambda name: _tpu().unsupported(qkv, num_heads, device_kind()) if name == "tpu" else None)
    if chosen == "reference":
        return reference.attend(qkv, segments, dropout, num_heads=num_heads, rate=rate)
    if chosen == "xla":
        segments = (segments[:, :, None] == segments[:, None, :]).astype(jnp.float32)
    return _attend(_Options(chosen, num_heads, rate), qkv, segments, dropout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: _Options, qkv, texts, dropout):
    """texts: segments [r, L]; for XLA [r, L, L], 1 if two tokens belong to one text."""
    return _forward(options, qkv, texts, dropout)[0]


def _forward(options: _Options, qkv, texts, dropout):
    module, static = _module(options)
    out, residuals = module.forward(qkv, texts, dropout, **static)
    return out, (qkv, texts, dropout, residuals)


def _backward(options: _Options, saved, gradient):
    module, static = _module(options)
    return module.backward(*saved, gradient, **static), None, None


_attend.defvjp(_forward, _backward)


def _module(options: _Options) -> tuple[ModuleType, dict]:
    """The chosen implementation and its static options."""
    static = {"num_heads": options.num_heads, "rate": options.rate}
    if options.implementation == "xla":
        return xla, static
    return _tpu(), static | {"interpret": options.implementation == "tpu_interpret"}


def _tpu() -> ModuleType:
    """The module, imported only if it may run: importing Pallas for TPUs takes a tenth of the start."""
    from kernels.attention import tpu

    return tpu


def _check(qkv, segments, num_heads: int) -> None:
    if qkv.ndim != 3 or segments.shape != qkv.shape[:2] or 0 in qkv.shape:
        raise ValueError(f"qkv [r, L, 3 D] and segments [r, L] do not match or are empty: {qkv.shape} and "
                         f"{segments.shape}")
    if qkv.shape[2] % (3 * num_heads):
        raise ValueError(f"qkv's width {qkv.shape[2]} is not three times a multiple of num_heads={num_heads}")
