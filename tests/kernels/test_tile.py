"""The constant shift of bounded scores, where it meets the running maximum; the statistics of the rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.contrastive.api import similarity_logsumexp
from kernels.contrastive.tile import constant_shift
from tests.kernels.oracle import answer, random_case
from tests.kernels.test_contrastive import BLOCK, SIZES, TOLERANCE, assert_close, run

BOUNDED_CASES = [
    ("xla", "float32", "aligned", "none"), ("xla", "float32", "ragged", "empty"),
    ("xla", "float32", "one row", "duplicates"), ("xla", "bfloat16", "ragged", "duplicates"),
    ("tpu_interpret", "float32", "aligned", "none"), ("tpu_interpret", "float32", "one row", "duplicates"),
    ("tpu_interpret", "bfloat16", "ragged", "empty"),
]


@pytest.mark.parametrize("num_rows, num_keys", [(1, 1), (7, 4096), (4096, 7), (1, 2**20)])
def test_the_shift_is_constant_up_to_the_limit(num_rows, num_keys):
    size = max(num_rows, num_keys)
    limit = (156 - math.log(size)) / 2
    shift = constant_shift(limit - 1e-6, num_rows, num_keys)
    assert constant_shift(limit + 1e-6, num_rows, num_keys) is None
    assert constant_shift(None, num_rows, num_keys) is None
    normal = np.finfo(np.float32)
    lses = -limit, limit + math.log(size)  # one candidate, as far away as can be; all as near as can be
    weights = [math.exp(shift - lse) for lse in lses]
    assert all(2 * normal.tiny < value < normal.max / 2
               for value in (math.exp(-limit - shift), size * math.exp(limit - shift), *weights))
    assert 2**-24 * min(weights) > normal.tiny
    assert constant_shift(20.2, num_rows, num_keys) == 0


@pytest.mark.parametrize("implementation, dtype, sizes, labels", BOUNDED_CASES)
def test_bounded_equals_the_oracle(implementation, dtype, sizes, labels):
    case = random_case(40 + len(sizes), *SIZES[sizes], dtype=dtype, labels=labels)
    assert_close(run(case, dtype, implementation, bound=1.01 * case.scale), answer(case), TOLERANCE[dtype])


@pytest.mark.parametrize("columns", [True, False])
def test_bounded_in_uneven_blocks(columns):
    case = random_case(41, 150, 200, 24, labels="empty")
    if not columns:
        case = case._replace(column_cotangent=np.zeros(200))
    expected = answer(case)
    result = run(case, "float32", "xla", block=64, bound=20.2, columns=columns)
    assert_close(result if columns else result._replace(column_lse=jnp.asarray(expected.column_lse)), expected,
                 TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_bounded_without_any_candidate(implementation):
    case = random_case(26, 5, 9, 16)._replace(key_labels=np.full((9, 2), -1, np.int32))
    case.column_cotangent[3] = np.nan
    result = run(case, "float32", implementation, bound=20.2)
    assert np.all(np.isneginf(result.row_lse)) and np.all(np.isneginf(result.column_lse))
    assert not any(np.any(gradient) for gradient in result[2:5])


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_both_forms_agree_where_they_meet(implementation, inside):
    """Scores of +-scale on either side of the limit, sums from one candidate to all, cotangents of any magnitude."""
    rows, keys, scale = 130, 140, 75.4
    bound = scale + 0.1 if inside else scale + 0.2  # the limit is 75.53
    assert (constant_shift(bound, rows, keys) is not None) == inside
    mixed = random_case(42, rows, keys, 64, scale=scale)
    mixed.keys[:60], mixed.keys[60:120] = mixed.queries[:60], -mixed.queries[:60]
    key_labels = np.stack([np.full(keys, 5), np.full(keys, -1)], axis=1).astype(np.int32)
    query_labels = np.stack([100 + np.arange(rows), np.full(rows, 6)], axis=1).astype(np.int32)
    query_labels[0, 1] = 5  # leaves row 0 its own positive only, which is its opposite
    positives = np.full(rows, 60, np.int32)
    mixed = mixed._replace(key_labels=key_labels, query_labels=query_labels, positives=positives)
    equal = mixed._replace(queries=np.repeat(mixed.queries[:1], rows, 0), keys=np.repeat(mixed.queries[:1], keys, 0))
    tolerances = TOLERANCE["float32"] | {"query_gradient": 2e-5, "key_gradient": 2e-5}
    for case in (mixed, equal):
        expected = answer(case)
        for magnitude in (1e-9, 1.0, 1e9):
            scaled = case._replace(row_cotangent=magnitude * case.row_cotangent,
                                   column_cotangent=magnitude * case.column_cotangent)
            result = run(scaled, "float32", implementation, bound=bound)
            gradients = {name: getattr(result, name) / magnitude for name in result._fields if "gradient" in name}
            assert_close(result._replace(**gradients), expected, tolerances)


@pytest.mark.parametrize("implementation, dtype, bound, block", [
    ("reference", "float32", None, BLOCK), ("xla", "float32", None, 64), ("xla", "bfloat16", 20.2, BLOCK),
    ("xla", "float32", 20.2, None), ("tpu_interpret", "bfloat16", None, BLOCK),
])
def test_labels_of_keys_only(implementation, dtype, bound, block):
    """Nothing is known of the queries: only empty keys are left out, and they are not counted."""
    case = random_case(45, 150, 200, 24, dtype=dtype, labels="empty")._replace(query_labels=None, positives=None)
    result = run(case, dtype, implementation, bound=bound, block=block)
    assert not np.any(result.num_left_out)
    assert_close(result, answer(case), TOLERANCE[dtype])


def test_statistics_of_a_row_without_negatives():
    """Its own positive and an empty key: -inf, and nothing left out."""
    labels = {"query_labels": jnp.array([[0, 1]]), "key_labels": jnp.array([[1, 0], [-1, -1]]),
              "positives": jnp.array([0])}
    for implementation in ("reference", "xla"):
        _, _, found = similarity_logsumexp(
            jnp.ones((1, 8)), jnp.ones((2, 8)), 1.0, implementation=implementation, **labels)
        assert found.hardest_negative == -jnp.inf and found.num_left_out == 0


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_no_gradient_flows_into_the_statistics(implementation):
    case = random_case(44, 20, 30, 8)
    queries, keys = jnp.asarray(case.queries, jnp.float32), jnp.asarray(case.keys, jnp.float32)

    def loss(queries, weight):
        row_lse, _, found = similarity_logsumexp(queries, keys, 20.0, implementation=implementation)
        return jnp.sum(row_lse) + weight * jnp.sum(found.hardest_negative)

    gradient = jax.jit(jax.grad(loss))
    with_it, without = gradient(queries, 7.0), gradient(queries, 0.0)
    np.testing.assert_array_equal(with_it, without)
