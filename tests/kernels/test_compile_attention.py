"""The attention kernels compile for real TPUs (ahead of time, without one) and keep the scores out of HBM."""

import dataclasses

import jax.numpy as jnp
import pytest

from benchmarks.attention_tpu import encoder_model
from plan.programs import compile_attention, topology_mesh

pytestmark = pytest.mark.usefixtures("tpu_compiler")


@pytest.mark.parametrize("topology, dtype, name, length, rate", [
    ("v3:2x2", jnp.float32, "minilm", 128, 0.1),
    ("v3:2x2", jnp.float32, "large", 512, 0.1),
    ("v5e:2x4", jnp.bfloat16, "minilm", 128, 0.1),
    ("v5e:2x4", jnp.bfloat16, "base", 256, 0.0),
    ("v5e:2x4", jnp.bfloat16, "large", 512, 0.1),
    ("tpu7x:2x2x1", jnp.bfloat16, "base", 512, 0.1),
], ids=lambda value: value if isinstance(value, str) else None)
def test_compiles_without_the_scores(topology, dtype, name, length, rate):
    encoder = dataclasses.replace(encoder_model(name, 1).encoder, attention_dropout=rate)
    rows = 16
    program = compile_attention(topology_mesh(topology), encoder, dtype, rows=rows, row_length=length,
                                implementation="auto")
    assert program.compiled.as_text().count("tpu_custom_call") >= 2  # forward and backward
    assert program.temp_bytes < 4 * rows * encoder.num_heads * length**2 / 20


@pytest.mark.parametrize("topology, length", [("v3:2x2", 128), ("v5e:2x4", 64)])
def test_automatic_choice_is_xla_where_the_kernel_cannot_run(topology, length):
    """bfloat16 on v3; rows that fill no register."""
    encoder = encoder_model("minilm", 1).encoder
    sizes = {"rows": 16, "row_length": length}
    program = compile_attention(topology_mesh(topology), encoder, jnp.bfloat16, **sizes, implementation="auto")
    assert "tpu_custom_call" not in program.compiled.as_text()
    with pytest.raises(ValueError, match="TPU v3" if length == 128 else "64 tokens"):
        compile_attention(topology_mesh(topology), encoder, jnp.bfloat16, **sizes, implementation="tpu")
