"""The TPU kernels compile for real TPUs (ahead of time, without one) and hold nothing of size [b, N] in HBM."""


import jax.numpy as jnp
import pytest

from plan.programs import compile_similarity, topology_mesh

pytestmark = pytest.mark.usefixtures("tpu_compiler")


@pytest.mark.parametrize("topology, dtype, sizes", [
    ("v3:2x2", jnp.float32, {"rows": 1024, "columns": 8192, "width": 384}),
    ("v3:2x2", jnp.float32, {"rows": 1000, "columns": 8191, "width": 384, "bound": 20.2}),
    ("v4:2x2x1", jnp.bfloat16, {"rows": 4096, "columns": 32768, "width": 768}),
    ("v4:2x2x1", jnp.bfloat16, {"rows": 4096, "columns": 32768, "width": 768, "bound": 20.2}),
    ("v5e:2x4", jnp.bfloat16, {"rows": 4096, "columns": 32768, "width": 768}),
    ("v5e:2x4", jnp.bfloat16, {"rows": 1000, "columns": 8191, "width": 312}),
    ("v5e:2x4", jnp.float32, {"rows": 1, "columns": 8, "width": 1024, "symmetric": False}),
    ("v5e:2x4", jnp.bfloat16, {"rows": 300, "columns": 1000, "width": 768, "masked": False}),
    ("v5e:2x4", jnp.bfloat16, {"rows": 300, "columns": 1000, "width": 768, "masked": False, "bound": 20.2}),
], ids=lambda value: value if isinstance(value, str) else None)
def test_compiles_without_the_similarity_block(topology, dtype, sizes):
    program = compile_similarity(topology_mesh(topology), dtype, **sizes)
    assert program.compiled.as_text().count("tpu_custom_call") >= 2  # forward and backward
    score_bytes = sizes["rows"] * sizes["columns"] * 4
    if score_bytes > 2**24:
        assert program.temp_bytes < score_bytes / 20


def test_bfloat16_on_v3_is_refused():
    with pytest.raises(ValueError, match="TPU v3"):
        compile_similarity(topology_mesh("v3:2x2"), jnp.bfloat16, rows=128, columns=256, width=128)
