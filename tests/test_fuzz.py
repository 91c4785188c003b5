"""Random shapes, options and blocks of the losses. The tests' names hold the seeds; ALLPAIRS_FUZZ_SEED=n draws others.

Each draw is one program or more, to be compiled: few of them, of the interpreted TPU kernels fewest.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels import oracle, test_contrastive, test_queue_kl, test_summed
from tests.training.test_key_exchange import loss_and_gradients
from training.objectives.contrastive import KeyExchange

FIRST_SEED = int(os.environ.get("ALLPAIRS_FUZZ_SEED", 0))


def seeds(count: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + count)


def draw_block(random: np.random.Generator, implementation: str) -> int | None:
    blocks = [None, 128, 256] if implementation == "tpu_interpret" else [None, *random.integers(1, 300, 3).tolist()]
    return blocks[random.integers(len(blocks))]


def oracle_draws(random_draws: int, interpreted_draws: int):
    yield from (("xla", seed) for seed in seeds(random_draws))
    yield from (("tpu_interpret", seed) for seed in seeds(interpreted_draws))


@pytest.mark.parametrize("implementation, seed", list(oracle_draws(10, 4)))
def test_similarity_logsumexp(implementation, seed):
    random = np.random.default_rng(seed)
    rows, columns, width = random.integers(1, (300, 300, 150))
    dtype, labels = random.choice(["float32", "bfloat16"]), random.choice(["none", "duplicates", "empty"])
    options = {"columns": bool(random.integers(2)), "bound": random.choice([None, 20.2]),
               "block": draw_block(random, implementation)}
    print(f"{seed=} {rows=} {columns=} {width=} {dtype=} {labels=} {options}")
    case = oracle.random_case(seed, rows, columns, width, dtype=dtype, labels=labels)
    if not options["columns"]:
        case = case._replace(column_cotangent=np.zeros(columns))
    result, expected = test_contrastive.run(case, dtype, implementation, **options), oracle.answer(case)
    if not options["columns"]:
        result = result._replace(column_lse=jnp.asarray(expected.column_lse))
    test_contrastive.assert_close(result, expected, test_contrastive.TOLERANCE[dtype])


@pytest.mark.parametrize("seed", seeds(8))
def test_summed_logsumexp(seed):
    random = np.random.default_rng(seed)
    rows, columns, width = random.integers(1, (300, 300, 150))
    dtype, labels = random.choice(["float32", "bfloat16"]), random.choice(["none", "duplicates", "empty"])
    options = {"bound": random.choice([None, 20.2]), "row_block": draw_block(random, "xla"),
               "column_block": draw_block(random, "xla")}
    print(f"{seed=} {rows=} {columns=} {width=} {dtype=} {labels=} {options}")
    case = oracle.random_case(seed, rows, columns, width, dtype=dtype, labels=labels)
    test_summed.assert_equals_the_oracle(case, dtype, "xla", **options)


@pytest.mark.parametrize("implementation, seed", list(oracle_draws(6, 3)))
def test_queue_kl_of_random_shapes(implementation, seed):
    random = np.random.default_rng(seed)
    sizes = random.integers((1, 2, 1), (200, 300, 150))
    dtype = random.choice(["float32", "bfloat16"])
    options = {"block": draw_block(random, implementation), "unit_norm": bool(random.integers(2))}
    print(f"{seed=} {sizes=} {dtype=} {options}")
    case = test_queue_kl.random_case(seed, *sizes, dtype=dtype)
    test_queue_kl.assert_close(test_queue_kl.run(case, implementation, dtype, **options), test_queue_kl.answer(case),
                               test_queue_kl.TOLERANCE[dtype])


@pytest.mark.parametrize("seed", seeds(5))
def test_contrastive_loss(seed):
    """Any number of hard negatives, devices and examples, however keys are exchanged: the plain loss on one device."""
    random = np.random.default_rng(seed)
    num_devices, texts_per_example = int(random.choice([1, 2, 3, 8])), int(random.integers(2, 6))
    blocks, examples, width = num_devices * random.integers(1, 4), random.integers(1, 5), random.integers(1, 80)
    embeddings = random.standard_normal((blocks, texts_per_example * examples, width)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    ids = random.integers(1, 8 * blocks * examples, (*embeddings.shape[:2], 1)).astype(np.uint32)
    ids = np.concatenate([ids, ids // 3], axis=-1)
    ids[:, 2 * examples:][random.random(ids[:, 2 * examples:].shape[:2]) < 0.2] = 0  # no such hard negative
    dtype, exchange = random.choice(["float32", "bfloat16"]), random.choice(KeyExchange.__args__)
    options = {"texts_per_example": texts_per_example, "symmetric": bool(random.integers(2)), "dtype": dtype,
               "bound": random.choice([None, 20.2])}
    print(f"{seed=} {num_devices=} {embeddings.shape=} {exchange=} {options}")
    loss, gradients, _ = jax.device_get(loss_and_gradients(exchange, num_devices, embeddings, ids, **options))
    expected, expected_gradients, _ = jax.device_get(loss_and_gradients(
        "all_gather", 1, embeddings, ids, implementation="reference", **options))
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    tolerance = test_contrastive.TOLERANCE[dtype]["query_gradient"]
    for actual, wanted in zip(gradients, expected_gradients):
        assert np.max(np.abs(actual - wanted)) <= tolerance * max(np.max(np.abs(wanted)), 1 / (blocks * examples))
