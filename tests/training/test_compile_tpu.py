"""The whole training step compiles for TPUs, with the Pallas kernel in it and one reduction of the gradients."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from model.parameters import declare
from plan.counts import collectives
from plan.programs import compile_train_step, topology_layout
from tests.training.test_parallel import MODEL
from training.objectives.sct import QueueOptions, sct_objective

pytestmark = pytest.mark.usefixtures("tpu_compiler")
ENCODER = dataclasses.replace(MODEL.encoder, hidden_size=128, intermediate_size=256, max_positions=128)


def queues(dtype, batch_size):
    options = QueueOptions(size=4 * batch_size, num_queues=2, reference_temperature=0.04, temperature=0.05, weight=1.0,
                           dtype=dtype, implementation="auto", seed=0)
    return sct_objective(ENCODER.hidden_size, batch_size, options, head=True, reference="own", momentum=0.0)


@pytest.mark.parametrize("topology, dtype, sct", [
    ("v5e:2x4", jnp.bfloat16, False), ("v3:2x2", jnp.float32, False), ("v5e:2x4", jnp.bfloat16, True),
])
def test_step_compiles(topology, dtype, sct):
    model, layout = dataclasses.replace(MODEL, encoder=ENCODER), topology_layout(topology)
    objective = queues(dtype, 16 * layout.mesh.size) if sct else None
    program = compile_train_step(layout, model, dtype, examples=16, rows=8, row_length=128, objective=objective)
    assert "pmax" not in str(program.jaxpr), "bounded scores need no maximum over the devices"
    hlo = program.compiled.as_text()
    assert "tpu_custom_call" in hlo, "the Pallas kernel is in the step"
    found = collectives(hlo)
    largest = max(math.prod(parameter.shape) for parameter in jax.tree.leaves(declare(model)))
    assert len([each for each in found if each.kind == "all-reduce" and each.largest >= largest]) == 1, found
