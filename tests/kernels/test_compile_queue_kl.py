"""The queue kernels compile for real TPUs (ahead of time, without one), the queue split, and hold nothing [b, k]."""


import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from kernels.queue_kl.api import queue_kl
from plan.programs import topology_mesh
from sharding.layout import DEVICES, SPLIT, WHOLE

pytestmark = pytest.mark.usefixtures("tpu_compiler")


def compile_loss(topology: str, dtype, *, all_rows: int, local_queue_rows: int, width: int):
    """Loss and gradient of `all_rows` rows over a queue of which each device of the topology has its part."""
    mesh = topology_mesh(topology)

    def local_loss(embeddings, references, queue):
        divergence = queue_kl(references, embeddings, queue, reference_temperature=0.03, temperature=0.04,
                              axis_name=DEVICES, unit_norm=True)
        return jnp.sum(divergence) / all_rows

    step = jax.shard_map(jax.value_and_grad(local_loss), mesh=mesh, in_specs=SPLIT, out_specs=(WHOLE, SPLIT),
                         check_vma=False)
    rows, queue = (jax.ShapeDtypeStruct((count, width), dtype, sharding=NamedSharding(mesh, SPLIT))
                   for count in (all_rows, mesh.size * local_queue_rows))
    return jax.jit(step).lower(rows, rows, queue).compile()


@pytest.mark.parametrize("topology, dtype", [("v5e:2x4", jnp.bfloat16), ("v3:2x2", jnp.float32)],
                         ids=lambda value: value if isinstance(value, str) else None)
def test_compiles_without_the_score_block(topology, dtype):
    compiled = compile_loss(topology, dtype, all_rows=512, local_queue_rows=131072, width=384)
    assert compiled.as_text().count("tpu_custom_call") >= 2  # forward and dZ
    score_bytes = 512 * 131072 * 4  # of one side; the materialised form holds two such arrays
    assert compiled.memory_analysis().temp_size_in_bytes < score_bytes / 20


@pytest.mark.parametrize("dtype, sizes", [
    (jnp.bfloat16, {"all_rows": 1024, "local_queue_rows": 16512, "width": 1024}),
    (jnp.bfloat16, {"all_rows": 8, "local_queue_rows": 8191, "width": 312}),
    (jnp.float32, {"all_rows": 1000, "local_queue_rows": 2050, "width": 768}),
    (jnp.float32, {"all_rows": 128, "local_queue_rows": 8192, "width": 128}),
])
def test_default_blocks_fit(dtype, sizes):
    assert compile_loss("v5e:2x4", dtype, **sizes).as_text().count("tpu_custom_call") >= 2


def test_bfloat16_on_v3_is_refused():
    with pytest.raises(ValueError, match="TPU v3"):
        compile_loss("v3:2x2", jnp.bfloat16, all_rows=8, local_queue_rows=256, width=128)
