"""What is logged of a batch in which some queries, or all, have no negative."""

import jax.numpy as jnp
import pytest

from kernels.contrastive.tile import RowStatistics
from training.objectives.contrastive import batch_metrics, metric_sums


@pytest.mark.parametrize("hardest, expected", [([4.0, 12.0, -jnp.inf, -jnp.inf], 0.4), ([-jnp.inf] * 4, 0.0)])
def test_the_hardest_negative_is_averaged_where_there_is_one(hardest, expected):
    statistics = RowStatistics(jnp.array(hardest), jnp.array([1.0, 0.0, 3.0, 3.0]))
    sums = metric_sums(jnp.array([10.0, 10.0, 10.0, 10.0]), statistics, scale=20.0, B=4, num_keys=4)
    metrics = batch_metrics(sums)
    assert metrics["hardest_negative_similarity"] == pytest.approx(expected)
    assert metrics["accuracy_at_1"] == pytest.approx(0.75 if expected else 1.0)
    assert metrics["positive_similarity"] == pytest.approx(0.5)
    assert metrics["share_left_out"] == pytest.approx(7 / 16)
