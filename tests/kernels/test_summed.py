"""summed_logsumexp against the float64 oracle: values, gradients, statistics, many devices, arithmetic and memory."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels.contrastive import xla
from kernels.contrastive.api import summed_logsumexp
from plan.counts import matrix_flops
from tests.kernels import oracle
from tests.kernels.oracle import random_case
from tests.kernels.test_contrastive import SIZES, TOLERANCE

NAMES = ("query_gradient", "key_gradient", "scale_gradient")
BLOCKS = {"row_block": 64, "column_block": 48}


@functools.partial(jax.jit, static_argnames=("implementation", "bound", "row_block", "column_block"),
                   compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
def value_and_gradients(queries, keys, scale, labels, cotangent, **options):
    total, vjp, statistics = jax.vjp(
        lambda *operands: summed_logsumexp(*operands, **labels, **options), queries, keys, scale,
        has_aux=True)
    return total, vjp(cotangent), statistics


def operands(case, dtype):
    labels = {name: jnp.asarray(getattr(case, name)) for name in ("query_labels", "key_labels", "positives")
              if getattr(case, name) is not None}
    return jnp.asarray(case.queries, dtype), jnp.asarray(case.keys, dtype), jnp.float32(case.scale), labels


def assert_equals_the_oracle(case, dtype, implementation, tolerances=None, **options):
    cotangent = case.row_cotangent[0]
    total, gradients, statistics = value_and_gradients(
        *operands(case, dtype), jnp.float32(cotangent), implementation=implementation, **options)
    one_cotangent = case._replace(row_cotangent=np.full(len(case.queries), cotangent),
                                  column_cotangent=np.zeros(len(case.keys)))
    expected = oracle.answer(one_cotangent)
    np.testing.assert_allclose(total, expected.row_lse.sum(), rtol=2e-6)
    assert_gradients_close(gradients, expected, dtype, tolerances)
    np.testing.assert_allclose(statistics.hardest_negative, expected.hardest_negative, rtol=1e-5)
    np.testing.assert_array_equal(statistics.num_left_out, expected.num_left_out)


def assert_gradients_close(gradients, expected, dtype, tolerances=None):
    for name, got in zip(NAMES, gradients):
        want = getattr(expected, name)
        assert got.dtype == (jnp.float32 if name == "scale_gradient" else dtype) and got.shape == want.shape, name
        error = np.max(np.abs(np.asarray(got.astype(jnp.float32), np.float64) - want)) / max(np.max(np.abs(want)), 1.0)
        tolerance = (tolerances or TOLERANCE[dtype])[name]
        assert error <= tolerance, f"{name}: error {error:.1e} over {tolerance:.1e}"


@pytest.mark.parametrize("bound, labels", [(None, "none"), (None, "empty"), (20.2, "duplicates"), (20.2, "empty")])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_oracle(bound, dtype, sizes, labels):
    case = random_case(60 + len(sizes), *SIZES[sizes], dtype=dtype, labels=labels)
    assert_equals_the_oracle(case, dtype, "xla", bound=bound, **BLOCKS)


@pytest.mark.parametrize("implementation, dtype, sizes, labels", [
    ("reference", "float32", "ragged", "empty"), ("reference", "bfloat16", "one row", "duplicates"),
    ("tpu_interpret", "float32", "ragged", "duplicates"), ("tpu_interpret", "bfloat16", "one row", "none"),
])
def test_other_implementations_equal_the_oracle(implementation, dtype, sizes, labels):
    case = random_case(61, *SIZES[sizes], dtype=dtype, labels=labels)
    assert_equals_the_oracle(case, dtype, implementation)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("row_block, column_block", [(None, None), (None, 33), (7, None), (1, 1), (150, 200)])
def test_any_blocks(row_block, column_block, dtype):
    case = random_case(62, 150, 200, 24, dtype=dtype, labels="empty")
    assert_equals_the_oracle(case, dtype, "xla", row_block=row_block, column_block=column_block)


@pytest.mark.parametrize("descending", [False, True])
def test_large_scale_is_stable(descending):
    """Scores from -100 to 100, in order: the maximum rises with every tile, or is in the first."""
    case = random_case(63, 130, 144, 64, scale=100.0)
    case.queries[:] = case.queries[0]
    case.keys[:60], case.keys[84:] = -case.queries[:60], case.queries[:60]
    if descending:
        case = case._replace(keys=case.keys[::-1])
    tolerances = TOLERANCE["float32"] | {"query_gradient": 2e-5, "key_gradient": 2e-5}
    assert_equals_the_oracle(case, "float32", "xla", tolerances, **BLOCKS)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("bound", [None, 20.2])
def test_rows_without_candidates_have_no_gradient(implementation, bound):
    """Empty queries: the sum is -inf, and the other rows' gradients are as if they were alone."""
    case = random_case(64, 9, 11, 16, labels="duplicates")
    case.query_labels[[0, 5]] = -1
    case = case._replace(positives=np.where(case.query_labels[:, 0] == -1, -1, case.positives).astype(np.int32))
    total, gradients, _ = value_and_gradients(
        *operands(case, "float32"), jnp.float32(1.0), implementation=implementation, bound=bound, row_block=4,
        column_block=5)
    assert total == -np.inf
    kept = [i for i in range(9) if i not in (0, 5)]
    assert not np.any(gradients[0][jnp.array([0, 5])])
    alone = case._replace(queries=case.queries[kept], query_labels=case.query_labels[kept],
                          positives=case.positives[kept])
    _, expected, _ = value_and_gradients(
        *operands(alone, "float32"), jnp.float32(1.0), implementation=implementation, bound=bound)
    np.testing.assert_allclose(gradients[0][jnp.array(kept)], expected[0], atol=2e-5)
    np.testing.assert_allclose(gradients[1], expected[1], atol=2e-5)
    np.testing.assert_allclose(gradients[2], expected[2], rtol=2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_keys_gathered_over_devices(num_devices, dtype):
    """Sum, gradients of queries and keys and, summed, that of the scale are those of one device."""
    case = random_case(65, 64, 48, 24, dtype=dtype, labels="empty")
    case = case._replace(row_cotangent=np.full(64, 0.25), column_cotangent=np.zeros(48))
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:num_devices])
    split, whole = PartitionSpec("data"), PartitionSpec()

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(split, split, whole, split, whole, split),
                       out_specs=(whole, (split, split, whole)), check_vma=False)
    def sum_and_gradients(queries, keys, scale, query_labels, key_labels, positives):
        def total(queries, keys, scale):
            return summed_logsumexp(
                queries, keys, scale, query_labels=query_labels, key_labels=key_labels, positives=positives,
                bound=20.2, axis_name="data", implementation="xla", row_block=5, column_block=17)[0]

        total, vjp = jax.vjp(total, queries, keys, scale)
        query_gradient, key_gradient, scale_gradient = vjp(jnp.float32(0.25))
        total, scale_gradient = jax.lax.psum((total, scale_gradient), "data")
        return total, (query_gradient, key_gradient, scale_gradient)

    queries, keys, scale, labels = operands(case, dtype)
    total, gradients = jax.jit(sum_and_gradients)(
        queries, keys, scale, labels["query_labels"], labels["key_labels"], labels["positives"])
    expected = oracle.answer(case)
    np.testing.assert_allclose(total, expected.row_lse.sum(), rtol=2e-6)
    assert_gradients_close(gradients, expected, dtype)
    if dtype == "bfloat16":
        _, one_device, _ = value_and_gradients(*operands(case, dtype), jnp.float32(0.25), implementation="xla",
                                               bound=20.2, row_block=5, column_block=17)
        assert jnp.mean(gradients[1] != one_device[1]) < 0.02, "the devices' parts are rounded once, when added"


@pytest.mark.parametrize("bound", [None, 20.2])
def test_no_gradient_flows_into_the_statistics(bound):
    case = random_case(66, 20, 30, 8)
    queries, keys, scale, _ = operands(case, "float32")

    def loss(queries, weight):
        total, found = summed_logsumexp(queries, keys, scale, implementation="xla", bound=bound)
        return total + weight * jnp.sum(found.hardest_negative)

    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_array_equal(gradient(queries, 7.0), gradient(queries, 0.0))


def flops(function, rows, num_keys, width, dtype=jnp.float32):
    """In units of u = b N D multiply-adds."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((rows, width), (num_keys, width))]
    return matrix_flops(jax.make_jaxpr(function)(*shapes, 20.0)) / math.prod((rows, num_keys, width))


@pytest.mark.parametrize("rows, num_keys, expected", [
    (96, 160, 6), (4096, 16384, 6), (256, 65536, 6), (512, 131072, 6), (512, 2**18, 8), (64, 2**18, 6),
])
def test_arithmetic(rows, num_keys, expected):
    """The floor where a strip fits; the sum alone takes one product."""

    def total(queries, keys, scale):
        return summed_logsumexp(queries, keys, scale, implementation="xla")[0]

    assert flops(total, rows, num_keys, 16) == 2
    assert flops(jax.value_and_grad(total, argnums=(0, 1, 2)), rows, num_keys, 16) == expected


def test_recomputation_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        flops(functools.partial(summed_logsumexp, implementation="xla"), 512, 2**18 + 1, 16)
    assert [record.getMessage() for record in caplog.records] == [
        "summed_logsumexp: no strip of 512 x 262145 scores fits: the gradient recomputes the scores"]


@pytest.mark.parametrize("kind, dtype, sizes, expected", [
    ("cpu", "float32", (4096, 16384), (256, 1024)), ("cpu", "float32", (300, 16384), (150, 1024)),
    ("cpu", "float32", (1024, 1024), (1024, 1024)), ("cpu", "float32", (4096, 131072), (128, 2048)),
    ("cpu", "float32", (4096, 131073), None), ("cpu", "bfloat16", (4096, 131073), (241, 1024)),
    ("NVIDIA H200", "bfloat16", (8192, 65536), (1024, 4096)), ("NVIDIA H200", "bfloat16", (8192, 2**18), (512, 8192)),
    ("NVIDIA H200", "float32", (8192, 2**18), None),
])
def test_strips(monkeypatch, kind, dtype, sizes, expected):
    monkeypatch.setattr(xla, "device_kind", lambda: kind)
    assert xla.strip_blocks(*sizes, dtype) == expected


def test_memory():
    """Beside operands and results: a strip of scores, and less than an eighth of the materialised form's."""

    def loss(queries, keys, implementation):
        return summed_logsumexp(queries, keys, 20.0, implementation=implementation, bound=20.2)[0] / 2048

    def temporary_bytes(implementation):
        function = jax.value_and_grad(functools.partial(loss, implementation=implementation), argnums=(0, 1))
        shapes = [jax.ShapeDtypeStruct((size, 16), jnp.float32) for size in (4096, 2048)]
        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("xla") < min(2 * 4 * 256 * 2048, temporary_bytes("reference") / 8)


def test_saves_only_gradients():
    case = random_case(67, 64, 96, 16, labels="duplicates")
    queries, keys, scale, labels = operands(case, "float32")
    _, vjp = jax.vjp(lambda *operands: summed_logsumexp(*operands, implementation="xla", **labels)[0],
                     queries, keys, scale)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) <= (64 + 96) * 16 + 1


@pytest.mark.parametrize("arguments, message", [
    ({"implementation": "tpu"}, "cannot run on 'cpu'"),
    ({"keys": jnp.ones((3, 7))}, r"\(2, 8\) and \(3, 7\)"),
    ({"keys": jnp.ones((0, 8))}, r"\(2, 8\) and \(0, 8\)"),
    ({"bound": -1.0}, "at least 0, not -1.0"),
    ({"positives": jnp.zeros(2, jnp.int32)}, "go together"),
])
def test_bad_input(arguments, message):
    arguments = {"queries": jnp.ones((2, 8)), "keys": jnp.ones((3, 8)), "scale": 1.0} | arguments
    with pytest.raises(ValueError, match=message):
        summed_logsumexp(**arguments)
