"""queue_kl against a float64 oracle that forms everything: values, gradients, properties, devices."""

import functools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels import implementation as choice
from kernels.products import UNIT_NORM_PRODUCT
from kernels.queue_kl.api import queue_kl
from kernels.queue_kl.sums import constant_shift, make_sides

# Largest error over the largest magnitude of the array (1 at least). bfloat16 operands are exact in the oracle too:
# what remains is the gradient of the scores, rounded to bfloat16 for the second product, and the gradient itself.
TOLERANCE = {
    "float32": {"divergence": 5e-6, "gradient": 5e-6},
    "bfloat16": {"divergence": 5e-6, "gradient": 8e-3},
}
SIZES = {  # (b, K, D)
    "aligned": (256, 256, 128),
    "ragged": (150, 200, 40),
    "one row": (1, 130, 40),
    "K not divisible": (128, 300, 64),
}
IMPLEMENTATIONS = ("reference", "xla", "tpu_interpret")
BLOCK = 128


class Case(NamedTuple):
    references: np.ndarray  # [b, D] float64, exactly representable in the tested dtype
    embeddings: np.ndarray  # [b, D]
    queue: np.ndarray  # [K, D]
    cotangent: np.ndarray  # [b]
    reference_temperature: float = 0.04
    temperature: float = 0.05


def random_case(seed: int, rows: int, queue_rows: int, width: int, *, dtype=np.float32) -> Case:
    random = np.random.default_rng(seed)

    def unit(count):
        vectors = random.standard_normal((count, width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(jnp.asarray(vectors, dtype).astype(jnp.float32), np.float64)

    return Case(unit(rows), unit(rows), unit(queue_rows), random.standard_normal(rows))


def answer(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(KL [b], gradient [b, D]) straight from the definition."""
    log_p = _log_softmax(case.references @ case.queue.T / case.reference_temperature)
    log_q = _log_softmax(case.embeddings @ case.queue.T / case.temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    gradient = case.cotangent[:, None] / case.temperature * (q - p) @ case.queue
    return np.sum(p * (log_p - log_q), axis=1), gradient


def _log_softmax(scores):
    scores = scores - np.max(scores, axis=1, keepdims=True)
    return scores - np.log(np.sum(np.exp(scores), axis=1, keepdims=True))


# The interpreted kernels are large programs that run once: compiling them takes the time of this file.
@functools.partial(jax.jit, static_argnames=("options",),
                   compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
def value_and_gradient(references, embeddings, queue, cotangent, *, options):
    value, vjp = jax.vjp(lambda embeddings: queue_kl(references, embeddings, queue, **dict(options)), embeddings)
    return value, *vjp(cotangent)


def run(case: Case, implementation: str, dtype="float32", *, block: int | None = BLOCK, unit_norm: bool = False):
    options = {"reference_temperature": case.reference_temperature, "temperature": case.temperature,
               "unit_norm": unit_norm, "implementation": implementation, "row_block": block, "queue_block": block}
    return value_and_gradient(
        *(jnp.asarray(array, dtype) for array in case[:3]), jnp.asarray(case.cotangent, jnp.float32),
        options=tuple(options.items()))


def assert_close(actual, expected, tolerances: dict[str, float] = TOLERANCE["float32"]):
    for got, want, (name, tolerance) in zip(actual, expected, tolerances.items(), strict=True):
        got = np.asarray(got.astype(jnp.float32), np.float64)
        assert got.shape == want.shape, name
        error = np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1.0)
        assert error <= tolerance, f"{name}: error {error:.1e} over {tolerance:.1e}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("unit_norm", [False, True])
def test_equals_the_oracle(implementation, dtype, sizes, unit_norm):
    case = random_case(sorted(SIZES).index(sizes), *SIZES[sizes], dtype=dtype)
    assert_close(run(case, implementation, dtype, unit_norm=unit_norm), answer(case), TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_default_blocks(implementation):
    case = random_case(20, 70, 90, 48)
    assert_close(run(case, implementation, block=None), answer(case))


@pytest.mark.parametrize("block", [7, 64])
def test_xla_in_uneven_blocks(block):
    """The last block overlaps the one before."""
    case = random_case(21, 150, 200, 24)
    assert_close(run(case, "xla", block=block), answer(case))


@pytest.mark.parametrize("implementation, reference_temperature, temperature", [
    ("xla", 0.02, 0.018), ("xla", 0.02, 0.01), ("xla", 0.01, 0.01), ("tpu_interpret", 0.01, 0.02),
])
def test_constant_shift_meets_the_running_maximum(implementation, reference_temperature, temperature):
    """Both sides bounded, either alone, or none: the same to rounding, from rows equal and opposite to the queue."""
    case = random_case(22, 30, 140, 32)
    case.embeddings[:10], case.references[5:15] = case.queue[:10], -case.queue[:10]
    case = case._replace(reference_temperature=reference_temperature, temperature=temperature)
    for unit_norm in (False, True):
        assert_close(run(case, implementation, unit_norm=unit_norm), answer(case),
                     {"divergence": 1e-5, "gradient": 1e-5})


@pytest.mark.parametrize("direction", [-1.0, 1.0])
@pytest.mark.parametrize("num_rows", [1, 140])
def test_constant_shift_at_its_limit(direction, num_rows):
    """Every score at one end of its range, at the lowest temperature that the shift accepts: nothing is lost.

    KL and gradient are zero, as differences of terms as large as the bound: errors are measured against it.
    """
    bound = max(bound for bound in np.arange(1.0, 90.0, 0.1) if constant_shift(bound, 2 * bound, num_rows) is not None)
    temperature = float(UNIT_NORM_PRODUCT / bound)
    case = random_case(23, 20, num_rows, 32)
    case.queue[:] = case.queue[0]
    case.embeddings[:], case.references[:] = direction * case.queue[0], -direction * case.queue[0]
    case = case._replace(reference_temperature=temperature, temperature=temperature)
    assert all(side.shift is not None for side in make_sides(1 / temperature, 1 / temperature, num_rows, True))
    assert_close(run(case, "xla", unit_norm=True), answer(case), dict.fromkeys(TOLERANCE["float32"], 1e-6 * bound))


def test_constant_shift_in_the_published_settings():
    """All temperatures of the recipes but 0.01 are within the range of float32 at 131,072 rows."""
    for temperature in (0.01, 0.02, 0.03, 0.04, 0.05):
        sides = make_sides(1 / temperature, 1 / 0.03, 131072, unit_norm=True)
        assert (sides[0].shift is None) == (temperature == 0.01) and sides[1].shift is not None


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_order_of_the_queue_does_not_matter(implementation):
    case = random_case(24, 130, 200, 48)
    order = np.random.default_rng(0).permutation(200)
    permuted = case._replace(queue=case.queue[order])
    for plain, moved in zip(run(case, implementation), run(permuted, implementation)):
        np.testing.assert_allclose(moved, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_embeddings_equal_to_references(implementation, dtype):
    """r = z at one temperature is a minimum: KL and gradient are zero, in bfloat16 too."""
    case = random_case(25, 20, 150, 32, dtype=dtype)
    case = case._replace(embeddings=case.references, temperature=case.reference_temperature)
    for result in run(case, implementation, dtype):
        np.testing.assert_allclose(result.astype(jnp.float32), np.zeros(result.shape), atol=5e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_references_and_queues_get_no_gradient(implementation):
    case = random_case(28, 5, 9, 12)
    operands = [jnp.asarray(array, jnp.float32) for array in case[:3]]

    def loss(references, embeddings, queue):
        return jnp.sum(queue_kl(references, embeddings, queue, temperature=0.05, reference_temperature=0.04,
                                implementation=implementation))

    gradients = jax.grad(loss, argnums=(0, 1, 2))(*operands)
    assert [bool(jnp.any(gradient != 0)) for gradient in gradients] == [False, True, False]


def test_saves_only_operands_and_log_sum_exps():
    case = random_case(29, 64, 96, 12)
    operands = [jnp.asarray(array, jnp.float32) for array in case[:3]]
    _, vjp = jax.vjp(lambda embeddings: queue_kl(
        operands[0], embeddings, operands[2], temperature=0.05, reference_temperature=0.04,
        implementation="xla"), operands[1])
    operand_size = (64 + 64 + 96) * 12
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) <= operand_size + 4 * 64  # and a mask of rows without p


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_over_devices(num_devices):
    """Loss and gradient are those of the mean over the global batch and the whole queue, wherever its rows lie."""
    B, K = 48, 160
    case = random_case(30, B, K, 24)._replace(cotangent=np.full(B, 1 / B))
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:num_devices])
    split, whole = PartitionSpec("data"), PartitionSpec()

    def share_of_the_loss(embeddings, references, queue):
        divergence = queue_kl(references, embeddings, queue, axis_name="data",
                              reference_temperature=case.reference_temperature, temperature=case.temperature,
                              unit_norm=True, row_block=20, queue_block=12)
        return jnp.sum(divergence) / B

    def step(*operands):
        loss, gradient = jax.value_and_grad(share_of_the_loss)(*operands)
        return jax.lax.psum(loss, "data"), gradient

    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=(whole, split), check_vma=False))
    loss, gradient = step(*(np.asarray(array, np.float32) for array in (case.embeddings, case.references, case.queue)))

    one_device, one_device_gradient = run(case, "xla")
    np.testing.assert_allclose(loss, np.mean(one_device), rtol=1e-5)
    np.testing.assert_allclose(gradient, one_device_gradient, rtol=1e-5, atol=1e-5 * np.max(np.abs(gradient)))
    divergence, expected_gradient = answer(case)
    np.testing.assert_allclose(loss, np.mean(divergence), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * np.max(np.abs(gradient)))


def test_gradient_is_summed_over_devices_in_float32():
    """Of bfloat16 embeddings, over 8 parts of the queue: that of the whole queue, but for a few roundings."""
    case = random_case(31, 64, 160, 24, dtype="bfloat16")._replace(cotangent=np.full(64, 1 / 64))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    def gradient(embeddings, *operands):
        def share_of_the_loss(embeddings, references, queue):
            return jnp.sum(queue_kl(
                references, embeddings, queue, axis_name="data", implementation="xla",
                reference_temperature=case.reference_temperature, temperature=case.temperature)) / 64

        return jax.grad(share_of_the_loss)(embeddings, *operands)

    operands = (jnp.asarray(array, jnp.bfloat16)
                for array in (case.embeddings, case.references, case.queue))
    _, one_device = run(case, "xla", "bfloat16")
    assert jnp.mean(jax.jit(gradient)(*operands) != one_device) < 0.05


def test_automatic_choice_is_logged(caplog):
    choice._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="absl"):
        for _ in range(2):
            queue_kl(jnp.ones((2, 8)), jnp.ones((2, 8)), jnp.ones((3, 8)), reference_temperature=1.0, temperature=1.0)
    assert [record.getMessage() for record in caplog.records] == ["queue_kl: implementation=xla on cpu"]


@pytest.mark.parametrize("arguments, message", [
    ({"implementation": "tpu"}, "cannot run on 'cpu'"),
    ({"implementation": "cuda"}, "'cuda' is none of"),
    ({"references": jnp.ones((2, 6))}, r"references \[b, D\] \(2, 6\).* \(3, 8\)"),
    ({"queue": jnp.ones((4, 6))}, r"\(2, 8\).*\(4, 6\)"),
    ({"embeddings": jnp.ones((3, 8))}, r"\(2, 8\).*\(3, 8\)"),
    ({"queue": jnp.ones((0, 8))}, r"empty: .*\(0, 8\)"),
    ({"queue": jnp.ones((3, 8), jnp.bfloat16)}, "bfloat16 and float32"),
    ({"temperature": 0.0}, "temperature=0.0"),
    ({"implementation": "tpu_interpret", "queue_block": 100}, "100 is not a multiple of 128"),
])
def test_bad_input(arguments, message):
    arguments = {"references": jnp.ones((2, 8)), "embeddings": jnp.ones((2, 8)), "queue": jnp.ones((3, 8)),
                 "reference_temperature": 0.05, "temperature": 0.05} | arguments
    with pytest.raises(ValueError, match=message):
        queue_kl(**arguments)
