"""ring_similarity_logsumexp, keys passed round 1, 2, 3 and 8 devices, against the oracle of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.contrastive.ring import ring_similarity_logsumexp
from sharding.layout import DEVICES, SPLIT, WHOLE, make_mesh
from tests.kernels.oracle import Answer, Case, answer, random_case
from tests.kernels.test_contrastive import TOLERANCE, assert_close

WIDTH = 24


def split_case(seed: int, num_devices: int, b: int, n: int, *, labels: str, dtype=np.float32) -> Case:
    """b rows and n keys on each device, in device order; a row's own positive is a key of its own device."""
    case = random_case(seed, num_devices * b, num_devices * n, WIDTH, dtype=dtype, labels=labels)
    if labels == "none":
        return case
    first = np.repeat(np.arange(num_devices) * n, b)
    positives = (first + np.random.default_rng(seed).integers(0, n, num_devices * b)).astype(np.int32)
    query_labels = np.stack([case.query_labels[:, 0], case.key_labels[positives, 0]], axis=1)
    return case._replace(positives=positives, query_labels=query_labels)


def run_ring(case: Case, num_devices: int, dtype=np.float32, **options) -> Answer:
    labels = {}
    if case.key_labels is not None:
        own_positives = case.positives % (len(case.keys) // num_devices)
        labels = {"query_labels": case.query_labels, "key_labels": case.key_labels, "positives": own_positives}

    @functools.partial(
        jax.shard_map, mesh=make_mesh(jax.devices()[:num_devices]), in_specs=(SPLIT, SPLIT, WHOLE, SPLIT, SPLIT, SPLIT),
        out_specs=Answer(SPLIT, SPLIT, SPLIT, SPLIT, WHOLE, SPLIT, SPLIT), check_vma=False)
    def values_and_gradients(queries, keys, scale, labels, row_cotangent, column_cotangent):
        def primal(queries, keys, scale):
            *values, statistics = ring_similarity_logsumexp(
                queries, keys, scale, axis_name=DEVICES, **labels, **options)
            return values, statistics

        values, vjp, statistics = jax.vjp(primal, queries, keys, scale, has_aux=True)
        gradients = vjp([row_cotangent, column_cotangent if options.get("columns", True) else None])
        return Answer(*values, *gradients[:2], jax.lax.psum(gradients[2], DEVICES), *statistics)

    return jax.jit(values_and_gradients)(
        jnp.asarray(case.queries, dtype), jnp.asarray(case.keys, dtype), jnp.float32(case.scale), labels,
        jnp.asarray(case.row_cotangent, jnp.float32), jnp.asarray(case.column_cotangent, jnp.float32))


@pytest.mark.parametrize("labels", ["none", "empty"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_equals_the_oracle(num_devices, bidirectional, labels):
    """Seven keys a device: halves of four and of three."""
    case = split_case(num_devices, num_devices, 9, 7, labels=labels)
    result = run_ring(case, num_devices, bidirectional=bidirectional, implementation="xla")
    assert_close(result, answer(case), TOLERANCE["float32"])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_bfloat16(bidirectional):
    case = split_case(11, 3, 10, 14, labels="duplicates", dtype=jnp.bfloat16)
    result = run_ring(case, 3, jnp.bfloat16, bidirectional=bidirectional, implementation="xla")
    assert_close(result, answer(case), TOLERANCE["bfloat16"])


def test_tpu_kernels_round_the_ring():
    case = split_case(12, 2, 130, 70, labels="empty")
    result = run_ring(case, 2, bidirectional=True, implementation="tpu_interpret")
    assert_close(result, answer(case), TOLERANCE["float32"])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_alone(bidirectional):
    case = split_case(13, 3, 9, 7, labels="duplicates")._replace(column_cotangent=np.zeros(21))
    result, expected = run_ring(case, 3, bidirectional=bidirectional, columns=False), answer(case)
    assert result.column_lse is None
    assert_close(result._replace(column_lse=jnp.asarray(expected.column_lse)), expected,
                 TOLERANCE["float32"] | {"column_lse": 1e-6})


def test_one_key_a_device_has_no_halves():
    case = split_case(14, 3, 1, 1, labels="duplicates")
    assert_close(run_ring(case, 3, bidirectional=True), answer(case), TOLERANCE["float32"])


def test_without_any_candidate():
    """All keys empty: -inf everywhere, gradients zero."""
    case = split_case(15, 2, 4, 6, labels="duplicates")
    result = run_ring(case._replace(key_labels=np.full((12, 2), -1, np.int32)), 2)
    assert np.all(np.isneginf(result.row_lse)) and np.all(np.isneginf(result.column_lse))
    for gradient in result[2:5]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_reference_is_refused():
    case = split_case(16, 1, 4, 6, labels="none")
    with pytest.raises(ValueError, match="'reference' has no ring form"):
        run_ring(case, 1, implementation="reference")
