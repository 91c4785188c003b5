"""What a step sends under each layout, as libtpu compiles it for eight v5e chips, is what the formula says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks.compile_layouts import bytes_expected, encoder_model
from model.parameters import declare
from plan.counts import collectives
from plan.programs import compile_train_step, topology_layout

PAIRS = 16


def small_model():
    model = encoder_model("roberta-large")
    return dataclasses.replace(model, encoder=dataclasses.replace(
        model.encoder, num_layers=2, vocab_size=8192, hidden_size=512, num_heads=8, intermediate_size=1024))


def test_bytes_sent_and_held(tpu_compiler):
    model, sent = small_model(), {}
    size = 4 * sum(math.prod(declared.shape) for declared in jax.tree.leaves(declare(model)))
    held = {"optimizer": size + 2 * size / 8, "parameters": 3 * size / 8}
    for shard_state, state_bytes in held.items():
        layout = topology_layout("v5e:2x4", shard_state)
        program = compile_train_step(layout, model, jnp.bfloat16, examples=PAIRS, rows=PAIRS, row_length=128,
                                     remat=True, attention_implementation="xla")
        found = collectives(program.compiled.as_text())
        sent[shard_state] = sum(each.times * each.bytes_sent for each in found)
        assert sent[shard_state] == pytest.approx(bytes_expected(model, layout, PAIRS), rel=0.05)
        assert program.compiled.memory_analysis().argument_size_in_bytes == pytest.approx(state_bytes, rel=0.05)
    without = bytes_expected(model, topology_layout("v5e:2x4"), PAIRS)
    assert sent["optimizer"] <= 1.02 * without, "an all-reduce sends as much"
