"""Attention over packed rows against the formula in float32: values, gradients, dropout, isolation of the texts."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import implementation as choice
from kernels.attention.api import attend
from kernels.attention.xla import CACHED_SCORES
from kernels.dropout import DropoutKeys

# Largest error over the largest magnitude of the array. In bfloat16 probabilities, the gradient of the scores and the
# results are rounded; the operands are exact in the reference too.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1.6e-2}
SIZES = {  # rows, tokens, heads, width of a head
    "MiniLM heads": (3, 128, 4, 32),
    "BERT heads": (2, 256, 4, 64),
    "several registers": (2, 128, 12, 32),
}
PACKINGS = ("ragged", "one text", "one token", "padding only")


def packed_segments(packing: str, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Segment ids [rows, length]; "ragged" ends in unused tokens, the last row of "one token" is unused but for one."""
    segments = np.ones((rows, length), np.int32)
    if packing == "ragged":
        random = np.random.default_rng(seed)
        starts = random.random((rows, length)) < 0.08
        segments = 1 + np.cumsum(starts, axis=1, dtype=np.int32)
        segments[:, length - 13:] = 0
    elif packing == "one token":
        segments[-1, 1:] = 0
    elif packing == "padding only":
        segments[:] = 0
    return segments


def random_operands(sizes: str | tuple, dtype="float32", seed: int = 0):
    """qkv [r, L, 3 D] and a cotangent [r, L, D]."""
    rows, length, heads, size = SIZES.get(sizes, sizes)
    random = np.random.default_rng(seed)
    qkv = random.standard_normal((rows, length, 3 * heads * size)) * 1.5
    return jnp.asarray(qkv, dtype), jnp.asarray(random.standard_normal((rows, length, heads * size)), dtype)


def random_keys(rows: int) -> DropoutKeys:
    low, high = np.random.default_rng(1).integers(0, 2**32, (2, rows), dtype=np.uint32)
    return DropoutKeys(low, high)


# The interpreted kernels are large programs that run once: compiling them takes the time of this file.
@functools.partial(jax.jit, static_argnames=("options",),
                   compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
def value_and_gradient(qkv, segments, keys, cotangent, *, options):
    out, vjp = jax.vjp(lambda qkv: attend(qkv, segments, keys, **dict(options)), qkv)
    return out, *vjp(cotangent)


def run(implementation: str, qkv, segments, cotangent, heads: int, keys=None, rate: float = 0.0):
    options = {"num_heads": heads, "rate": rate, "implementation": implementation}
    return value_and_gradient(qkv, segments, keys, cotangent, options=tuple(options.items()))


def assert_close(actual, expected, dtype="float32"):
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape and got.dtype == jnp.dtype(dtype)
        got, want = (np.asarray(array.astype(jnp.float32), np.float64) for array in (got, want))
        error = np.max(np.abs(got - want)) / np.max(np.abs(want))
        assert error <= TOLERANCE[dtype], f"error {error:.1e} over {TOLERANCE[dtype]:.1e}"


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_equals_the_reference(implementation, dtype, sizes, rate):
    rows, length, heads, _ = SIZES[sizes]
    qkv, cotangent = random_operands(sizes, dtype)
    segments, keys = packed_segments("ragged", rows, length), random_keys(rows) if rate else None
    expected = run("reference", qkv.astype(jnp.float32), segments, cotangent.astype(jnp.float32), heads, keys, rate)
    assert_close(run(implementation, qkv, segments, cotangent, heads, keys, rate), expected, dtype)


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
@pytest.mark.parametrize("packing", PACKINGS[1:])
def test_packings(implementation, packing):
    sizes = rows, length, heads, _ = 2, 128, 2, 64
    qkv, cotangent = random_operands(sizes)
    segments = packed_segments(packing, rows, length)
    expected = run("reference", qkv, segments, cotangent, heads)
    assert_close(run(implementation, qkv, segments, cotangent, heads), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_heads_in_several_blocks(dtype, monkeypatch):
    """As in long rows, whose heads do not all fit in VMEM at once."""
    from kernels.attention import tpu

    monkeypatch.setattr(tpu, "block_width", lambda *_: 128)
    sizes = rows, length, heads, _ = 2, 128, 12, 32
    qkv, cotangent = random_operands(sizes, dtype)
    segments, keys = packed_segments("ragged", rows, length), random_keys(rows)
    expected = run("reference", qkv.astype(jnp.float32), segments, cotangent.astype(jnp.float32), heads, keys, 0.3)
    assert_close(run("tpu_interpret", qkv, segments, cotangent, heads, keys, 0.3), expected, dtype)


@pytest.mark.parametrize("rows, length", [(3, 16), (6, 160)])
def test_xla_all_rows_at_once_and_in_parts(rows, length):
    heads = 12
    assert (rows * heads * length**2 > CACHED_SCORES) == (length == 160)
    qkv, cotangent = random_operands((rows, length, heads, 4))
    segments = packed_segments("ragged", rows, length)
    expected = run("reference", qkv, segments, cotangent, heads)
    assert_close(run("xla", qkv, segments, cotangent, heads), expected)


@pytest.mark.parametrize("implementation", ["reference", "xla", "tpu_interpret"])
def test_a_text_is_blind_to_the_others(implementation):
    """What one text gets has no gradient with respect to another, and does not change with it, however large."""
    sizes = rows, length, heads, _ = 2, 128, 4, 32
    qkv, cotangent = random_operands(sizes)
    segments = packed_segments("ragged", rows, length)
    own = segments == segments[0, 40]
    own[1] = False
    out, gradient = run(implementation, qkv, segments, cotangent * own[..., None], heads)
    assert (np.abs(gradient[own]).max(axis=-1) > 0).all()
    np.testing.assert_array_equal(gradient[~own], np.zeros_like(gradient[~own]))
    changed, _ = run(implementation, jnp.where(own[..., None], qkv, 50 * qkv), segments, cotangent, heads)
    np.testing.assert_array_equal(changed[own], out[own])


def test_scores_far_apart():
    """Exponentials that vanish, in and out of the text, leave no NaN."""
    sizes = rows, length, heads, _ = 2, 128, 4, 32
    qkv, cotangent = random_operands(sizes)
    segments = packed_segments("ragged", rows, length)
    for implementation in ("xla", "tpu_interpret"):
        assert all(jnp.isfinite(result).all() for result in run(implementation, 50 * qkv, segments, cotangent, heads))


def test_automatic_choice_is_logged(caplog):
    choice._log_choice.cache_clear()
    qkv, _ = random_operands((1, 16, 2, 4))
    with caplog.at_level(logging.DEBUG, logger="absl"):
        for _ in range(2):
            attend(qkv, jnp.ones((1, 16), jnp.int32), num_heads=2)
    assert [record.getMessage() for record in caplog.records] == ["attend: implementation=xla on cpu"]


@pytest.mark.parametrize("shape, heads, implementation, message", [
    ((2, 128, 384), 2, "tpu", "cannot run on 'cpu'"),
    ((2, 128, 384), 2, "cuda", "'cuda' is none of"),
    ((2, 96, 384), 2, "tpu_interpret", "rows of 96 tokens are not a multiple of 128"),
    ((2, 128, 3 * 312), 12, "tpu_interpret", "hidden size 312 in 12 heads"),
    ((2, 640, 384), 2, "tpu_interpret", "rows of 640 tokens .* up to 512"),
    ((2, 128, 384), 5, "auto", "384 is not three times a multiple of num_heads=5"),
    ((2, 64), 1, "auto", r"\(2, 64\) and \(2, 64\)"),
])
def test_bad_input(shape, heads, implementation, message):
    with pytest.raises(ValueError, match=message):
        attend(jnp.ones(shape), jnp.ones(shape[:2], jnp.int32), num_heads=heads, implementation=implementation)
