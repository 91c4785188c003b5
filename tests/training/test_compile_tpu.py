"""The whole training step compiles for TPUs, with the Pallas kernel in it and one reduction of the gradients."""

import dataclasses
import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks.program_counts import collectives
from benchmarks.tpu_programs import compile_train_step, topology_mesh
from model.parameters import declare
from tests.training.test_parallel import MODEL

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
ENCODER = dataclasses.replace(MODEL.encoder, hidden_size=128, intermediate_size=256, max_positions=128)


@pytest.mark.parametrize("topology, dtype", [("v5e:2x4", jnp.bfloat16), ("v3:2x2", jnp.float32)])
def test_step_compiles(topology, dtype):
    model = dataclasses.replace(MODEL, encoder=ENCODER)
    program = compile_train_step(topology_mesh(topology), model, dtype, examples=16, rows=8, row_length=128)
    assert "pmax" not in str(program.jaxpr), "bounded scores need no maximum over the devices"
    hlo = program.compiled.as_text()
    assert "tpu_custom_call" in hlo, "the Pallas kernel is in the step"
    found = collectives(hlo)
    largest = max(math.prod(parameter.shape) for parameter in jax.tree.leaves(declare(model)))
    assert len([each for each in found if each.kind == "all-reduce" and each.largest >= largest]) == 1, found
