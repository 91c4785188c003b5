"""Embedder: a model's default prompt comes before texts that have none yet, and only before those."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.embedder import Embedder
from evaluation.tasks.heldout import evaluate_pairs


@pytest.fixture
def encoder(angle_encoder):
    encoder = angle_encoder(2.0)
    prompts = (("query", "q: "), ("other", "o: "))
    encoder.config = SimpleNamespace(prompts=prompts, default_prompt_name="other", embedding_size=2, normalize=True)
    return encoder


def test_default_prompt(encoder):
    embedder = Embedder(encoder)
    embedder.remember([" 10", "20"])
    embeddings = embedder([" 10", "20", "30"])
    assert encoder.encoded == embedder.texts == ["o: 10", "o: 20", "o: 30"]
    np.testing.assert_array_equal(embedder.prompted(["o: 10", "o: 20", "o: 30"]), embeddings)
    assert len(encoder.encoded) == 3


def test_texts_with_prompts_get_no_other(encoder):
    embedder = Embedder(encoder)
    evaluate_pairs(embedder.prompted, [("1", "2")], embedder.prompts)
    assert encoder.encoded == ["q: 1", "2"]


def test_a_teacher_reads_texts_alone(encoder):
    Embedder(encoder, is_teacher=True)(["1"])
    assert encoder.encoded == ["1"]
