"""similarity_logsumexp against a float64 oracle: values, gradients, statistics, masking, properties, many devices."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels import implementation as choice
from kernels.contrastive.api import similarity_logsumexp
from kernels.contrastive.labels import text_labels
from sharding.collectives import all_gather_with_gradient, psum_logsumexp
from tests.kernels.oracle import Answer, answer, random_case

# Largest error over the largest magnitude of the array. bfloat16 operands are exact in the oracle too: what remains is
# the gradient of the scores, which is rounded to bfloat16 for the second product, and the gradient itself.
TOLERANCE = {
    "float32": {"row_lse": 1e-6, "column_lse": 1e-6, "query_gradient": 5e-6, "key_gradient": 5e-6,
                "scale_gradient": 2e-5, "hardest_negative": 1e-6, "num_left_out": 0.0},
    "bfloat16": {"row_lse": 1e-6, "column_lse": 1e-6, "query_gradient": 8e-3, "key_gradient": 8e-3,
                 "scale_gradient": 8e-3, "hardest_negative": 1e-6, "num_left_out": 0.0},
}
SIZES = {  # (b, N, D)
    "aligned": (256, 256, 128),
    "ragged": (150, 200, 72),
    "one row": (1, 130, 40),
    "N below the block": (140, 37, 64),
    "N not divisible": (128, 300, 128),
}
IMPLEMENTATIONS = ("reference", "xla", "tpu_interpret")
BLOCK = 128


# The interpreted kernels are large programs that run once: compiling them takes the time of this file.
@functools.partial(jax.jit, static_argnames=("implementation", "columns", "block", "bound"),
                   compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
def value_and_gradients(queries, keys, scale, labels, row_cotangent, column_cotangent, *, implementation, columns=True,
                        block=BLOCK, bound=None):
    blocks = {"row_block": block, "column_block": block}

    def primal(queries, keys, scale):
        *values, statistics = similarity_logsumexp(
            queries, keys, scale, columns=columns, implementation=implementation, bound=bound, **labels,
            **({} if implementation == "reference" else blocks))
        return values, statistics

    values, vjp, statistics = jax.vjp(primal, queries, keys, scale, has_aux=True)
    return *values, *vjp([row_cotangent, column_cotangent if columns else None]), *statistics


def run(case, dtype, implementation, **options) -> Answer:
    labels = {name: jnp.asarray(getattr(case, name)) for name in ("query_labels", "key_labels", "positives")
              if getattr(case, name) is not None}
    result = value_and_gradients(
        jnp.asarray(case.queries, dtype), jnp.asarray(case.keys, dtype), jnp.float32(case.scale), labels,
        jnp.asarray(case.row_cotangent, jnp.float32), jnp.asarray(case.column_cotangent, jnp.float32),
        implementation=implementation, **options)
    return Answer(*result)


def assert_close(actual: Answer, expected: Answer, tolerances: dict[str, float]):
    for name, want in expected._asdict().items():
        got = np.asarray(getattr(actual, name).astype(jnp.float32), np.float64)
        assert got.shape == want.shape, name
        np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want), err_msg=name)
        got, want = np.where(np.isneginf(want), 0.0, got), np.where(np.isneginf(want), 0.0, want)
        error = np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1.0)
        assert error <= tolerances[name], f"{name}: error {error:.1e} over {tolerances[name]:.1e}"


def oracle_cases():
    """All combinations, less the interpreted kernel without labels at three sizes: each would be one more program."""
    for case in itertools.product(IMPLEMENTATIONS, TOLERANCE, SIZES, ["none", "duplicates", "empty"]):
        if case[0] != "tpu_interpret" or case[3] != "none" or case[2] in ("aligned", "ragged"):
            yield case


@pytest.mark.parametrize("implementation, dtype, sizes, labels", list(oracle_cases()))
def test_equals_the_oracle(implementation, dtype, sizes, labels):
    seed = sorted(SIZES).index(sizes) * 3 + ["none", "duplicates", "empty"].index(labels)
    case = random_case(seed, *SIZES[sizes], dtype=dtype, labels=labels)
    assert_close(run(case, dtype, implementation), answer(case), TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_default_blocks(implementation):
    case = random_case(20, 70, 90, 48, labels="empty")
    assert_close(run(case, "float32", implementation, block=None), answer(case), TOLERANCE["float32"])


def test_xla_in_uneven_blocks():
    case = random_case(21, 150, 200, 24, labels="empty")
    for block in (7, 64):
        assert_close(run(case, "float32", "xla", block=block), answer(case), TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", ["reference", "xla", "tpu_interpret"])
def test_rows_alone(implementation):
    case = random_case(22, 150, 200, 72, labels="duplicates")
    case = case._replace(column_cotangent=np.zeros(200))
    result = run(case, "float32", implementation, columns=False)
    expected = answer(case)
    assert result.column_lse is None
    assert_close(result._replace(column_lse=jnp.asarray(expected.column_lse)), expected,
                 TOLERANCE["float32"] | {"column_lse": 1e-6})


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_large_scale_is_stable(implementation):
    """Embeddings that are equal and opposite: scores of +-100, whose exponentials overflow float32 unshifted."""
    case = random_case(23, 130, 140, 64, scale=100.0)
    case.keys[:60], case.keys[60:120] = case.queries[:60], -case.queries[:60]
    assert_close(run(case, "float32", implementation), answer(case),
                 TOLERANCE["float32"] | {"query_gradient": 2e-5, "key_gradient": 2e-5})


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_permuted_keys_permute_columns(implementation):
    case = random_case(24, 130, 200, 48, labels="duplicates")
    order = np.random.default_rng(0).permutation(200)
    permuted = case._replace(keys=case.keys[order], key_labels=case.key_labels[order],
                             positives=np.argsort(order)[case.positives].astype(np.int32),
                             column_cotangent=case.column_cotangent[order])
    plain, moved = run(case, "float32", implementation), run(permuted, "float32", implementation)
    np.testing.assert_allclose(moved.column_lse, plain.column_lse[order], rtol=1e-6)
    np.testing.assert_allclose(moved.row_lse, plain.row_lse, rtol=1e-6)
    np.testing.assert_allclose(moved.key_gradient, plain.key_gradient[order], atol=2e-5)


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_masked_duplicates_equal_removed_ones(implementation):
    """Keys with the text of every row's positive are left out, as if they had never been there."""
    case = random_case(25, 130, 200, 48)
    texts = np.concatenate([np.zeros(1), np.zeros(60), 1 + np.arange(139)]).astype(np.int32)  # key 0, copies, others
    query_labels = np.stack([1000 + np.arange(130), np.zeros(130)], axis=1).astype(np.int32)
    case = case._replace(query_labels=query_labels, positives=np.zeros(130, np.int32),
                         key_labels=np.stack([texts, np.full(200, -1, np.int32)], axis=1))
    masked = run(case, "float32", implementation)
    kept = np.r_[0, 61:200]
    removed = run(case._replace(keys=case.keys[kept], key_labels=None, query_labels=None, positives=None,
                                column_cotangent=case.column_cotangent[kept]), "float32", implementation)
    np.testing.assert_allclose(masked.row_lse, removed.row_lse, rtol=1e-6)
    np.testing.assert_allclose(masked.column_lse[kept], removed.column_lse, rtol=1e-6)
    np.testing.assert_allclose(masked.query_gradient, removed.query_gradient, atol=2e-5)
    assert np.all(np.isneginf(masked.column_lse[1:61])) and not np.any(masked.key_gradient[1:61])


@pytest.mark.parametrize("implementation", ["reference", "xla", "tpu_interpret"])
def test_without_any_candidate(implementation):
    """All keys empty, key labels alone: -inf everywhere, gradients zero even for a NaN cotangent of an empty column."""
    case = random_case(26, 5, 9, 16)._replace(key_labels=np.full((9, 2), -1, np.int32))
    result = run(case, "float32", implementation)
    assert np.all(np.isneginf(result.row_lse)) and np.all(np.isneginf(result.column_lse))
    assert np.all(np.isneginf(result.hardest_negative)) and not np.any(result.num_left_out)
    for gradient in result[2:5]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_saves_only_operands_and_sums():
    case = random_case(27, 64, 96, 16, labels="duplicates")
    operands = jnp.asarray(case.queries, jnp.float32), jnp.asarray(case.keys, jnp.float32), jnp.float32(20)
    labels = {"query_labels": case.query_labels, "key_labels": case.key_labels, "positives": case.positives}
    labels = {name: jnp.asarray(array) for name, array in labels.items()}
    _, vjp = jax.vjp(lambda *operands: similarity_logsumexp(*operands, implementation="xla", **labels)[:2], *operands)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) <= (64 + 96) * (16 + 1 + 3) + 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_composed_loss_over_devices(num_devices, symmetric):
    """Keys gathered, column sums combined: loss and gradients are the exact ones of the mean over the global batch.

    Symmetric: pairs. One-way: triplets, the keys being [all positives; all negatives].
    """
    B, D = 48, 24
    case = random_case(28, B, B if symmetric else 2 * B, D, labels="duplicates")
    texts = case.key_labels[:, 0]
    anchors = np.concatenate([case.query_labels[:, 0], np.full(len(texts) - B, -1)])
    case = case._replace(
        positives=np.arange(B, dtype=np.int32), key_labels=np.stack([texts, anchors], axis=1).astype(np.int32),
        query_labels=np.stack([case.query_labels[:, 0], texts[:B]], axis=1).astype(np.int32),
        row_cotangent=np.full(B, (0.5 if symmetric else 1.0) / B),
        column_cotangent=np.full(len(texts), 0.5 / B if symmetric else 0.0),
    )
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:num_devices])
    split, whole = PartitionSpec("data"), PartitionSpec()

    def share_of_the_loss(parameters, query_labels, key_labels, positives):
        queries, *candidates, scale = parameters
        keys = jnp.concatenate([all_gather_with_gradient(part, "data") for part in candidates])
        row_lse, column_lse, _ = similarity_logsumexp(
            queries, keys, scale, query_labels=query_labels, key_labels=key_labels, positives=positives,
            columns=symmetric, row_block=16, column_block=20)
        positive_scores = scale * jnp.sum(queries * candidates[0], axis=1)
        loss = jnp.sum(row_lse - positive_scores) / B
        if symmetric:
            own_columns = psum_logsumexp(column_lse, "data")[positives]
            loss = (loss + jnp.sum(own_columns - positive_scores) / B) / 2
        return loss

    def step(parameters, query_labels, key_labels, positives):
        loss, gradients = jax.value_and_grad(share_of_the_loss)(parameters, query_labels, key_labels, positives)
        *embedding_gradients, scale_gradient = gradients
        return jax.lax.psum(loss, "data"), (*embedding_gradients, jax.lax.psum(scale_gradient, "data"))

    candidates = np.split(case.keys.astype(np.float32), len(texts) // B)
    specs = (split,) * (1 + len(candidates)) + (whole,)
    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs, split, whole, split), out_specs=(whole, specs),
                                 check_vma=False))
    parameters = (case.queries.astype(np.float32), *candidates, np.float32(case.scale))
    loss, (query_gradient, *key_gradients, scale_gradient) = step(
        parameters, case.query_labels, case.key_labels, case.positives)

    expected = answer(case)
    positive_products = np.sum(case.queries * case.keys[:B], axis=1)
    expected_loss = (case.row_cotangent @ expected.row_lse - case.scale * positive_products.mean()
                     + (case.column_cotangent @ expected.column_lse if symmetric else 0.0))
    positive_gradient = np.concatenate([case.queries, np.zeros((len(texts) - B, D))]) * case.scale / B
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(query_gradient, expected.query_gradient - case.scale * case.keys[:B] / B, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(key_gradients), expected.key_gradient - positive_gradient, atol=1e-6)
    np.testing.assert_allclose(scale_gradient, expected.scale_gradient - positive_products.mean(), atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_keys_gathered_over_devices(num_devices, dtype):
    """The gradient of the keys is that of one device: the devices' parts are rounded once, when they have been added.

    Cotangents of +-1: then the unit of the gradient of the scores, which is rounded too, is the same everywhere.
    """
    case = random_case(30, 64, 48, 24, dtype=dtype, labels="empty")._replace(column_cotangent=np.zeros(48))
    case = case._replace(row_cotangent=np.sign(case.row_cotangent))
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:num_devices])
    split, whole = PartitionSpec("data"), PartitionSpec()

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(split, split, split, split, split, whole),
                       out_specs=(split, split, split), check_vma=False)
    def lse_and_gradients(queries, keys, cotangent, query_labels, positives, key_labels):
        def row_lse(queries, keys):
            return similarity_logsumexp(queries, keys, case.scale, query_labels=query_labels, key_labels=key_labels,
                                        positives=positives, columns=False, axis_name="data", implementation="xla")[0]

        row_lse, vjp = jax.vjp(row_lse, queries, keys)
        return row_lse, *vjp(cotangent)

    row_lse, query_gradient, key_gradient = jax.jit(lse_and_gradients)(
        jnp.asarray(case.queries, dtype), jnp.asarray(case.keys, dtype), jnp.asarray(case.row_cotangent, jnp.float32),
        case.query_labels, case.positives, case.key_labels)
    one_device, expected = run(case, dtype, "xla", columns=False, block=None), answer(case)
    assert_close(one_device._replace(row_lse=row_lse, query_gradient=query_gradient, key_gradient=key_gradient,
                                     column_lse=jnp.asarray(expected.column_lse)), expected, TOLERANCE[dtype])
    if dtype == "bfloat16":
        assert jnp.mean(key_gradient != one_device.key_gradient) < 0.02


@pytest.mark.parametrize("shift", [None, 450.0])
def test_psum_logsumexp_without_candidates(shift):
    """Columns that are -inf on one device, and on all: exact values, exact gradients, no NaN, no overflow at 500."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = PartitionSpec("data")
    low = 3.0 if shift is None else 403.0
    partial = np.array([[500.0, -np.inf, -np.inf, low], [499.0, low - 1, -np.inf, low]], np.float32)
    weights = np.array([0.3, -0.7, 1.1, 0.4], np.float32)

    def share(partial):
        combined = psum_logsumexp(partial[0], "data", shift)
        return jnp.sum(jnp.where(combined == -jnp.inf, 0.0, combined) * weights) / 2, combined  # two equal halves

    def step(partial):
        (_, combined), gradient = jax.value_and_grad(share, has_aux=True)(partial)
        return combined[None], gradient

    combined, gradient = jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(partial)
    expected = np.array([500 + np.log1p(np.exp(-1)), low - 1, -np.inf, low + np.log(2)])
    softmax = np.array([[1 / (1 + np.exp(-1)), 0, 0, 0.5], [np.exp(-1) / (1 + np.exp(-1)), 1, 0, 0.5]])
    np.testing.assert_allclose(combined, np.stack([expected] * 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, softmax * weights, rtol=1e-5)


def test_text_labels():
    random = np.random.default_rng(29)
    ids = random.integers(0, 3, (200, 2)).astype(np.uint32) * np.uint32(0x80000001)  # ties in each half, high bits set
    labels = np.asarray(jax.jit(text_labels)(ids))
    same_id = np.all(ids[:, None] == ids[None, :], axis=-1)
    np.testing.assert_array_equal(labels[:, None] == labels[None, :], same_id)
    np.testing.assert_array_equal(labels == -1, np.all(ids == 0, axis=1))
    assert labels.dtype == np.int32 and labels.min() == -1


def test_text_labels_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(3, 3\) uint32"):
        text_labels(jnp.zeros((3, 3), jnp.uint32))


def test_automatic_choice_is_logged(caplog):
    choice._log_choice.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="absl"):
        for _ in range(2):
            similarity_logsumexp(jnp.ones((2, 8)), jnp.ones((3, 8)), 1.0)
    assert [record.getMessage() for record in caplog.records] == ["similarity_logsumexp: implementation=xla on cpu"]


@pytest.mark.parametrize("arguments, message", [
    ({"implementation": "tpu"}, "cannot run on 'cpu'"),
    ({"implementation": "cuda"}, "'cuda' is none of"),
    ({"keys": jnp.ones((3, 7))}, r"\(2, 8\) and \(3, 7\)"),
    ({"keys": jnp.ones((0, 8))}, r"\(2, 8\) and \(0, 8\)"),
    ({"keys": jnp.ones((3, 8), jnp.bfloat16)}, "float32 and bfloat16"),
    ({"bound": -1.0}, "at least 0, not -1.0"),
    ({"scale": jnp.ones(2)}, r"scale .*\(2,\)"),
    ({"positives": jnp.zeros(2, jnp.int32)}, "go together"),
    ({"key_labels": jnp.zeros((4, 2), jnp.int32)}, r"\(3, 2\) int32, not \(4, 2\)"),
    ({"implementation": "tpu_interpret", "row_block": 100}, "100 is not a multiple of 128"),
])
def test_bad_input(arguments, message):
    arguments = {"queries": jnp.ones((2, 8)), "keys": jnp.ones((3, 8)), "scale": 1.0} | arguments
    with pytest.raises(ValueError, match=message):
        similarity_logsumexp(**arguments)
