"""The queue kernels compile for real TPUs (ahead of time, without one), the queue split, and hold nothing [b, k]."""


import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kernels.queue_kl.api import queue_kl
from plan.programs import topology_mesh

pytestmark = pytest.mark.usefixtures("tpu_compiler")


def compile_loss(topology: str, dtype, *, all_rows: int, local_queue_rows: int, widths: tuple[int, int],
                 num_queues: int = 1, filling: bool = False):
    """Loss and gradient of `all_rows` rows over a queue of which each device of the topology has its part."""
    mesh = topology_mesh(topology)
    reference_width, width = widths

    def local_loss(embeddings, references, queues, num_valid):
        divergence = queue_kl(references, embeddings, queues[0], reference_queue=queues[1] if queues[1:] else None,
                              num_valid=num_valid if filling else None, reference_temperature=0.03, temperature=0.04,
                              axis_name="data", unit_norm=True)
        return jnp.sum(divergence) / all_rows

    split, whole = PartitionSpec("data"), PartitionSpec()
    step = jax.shard_map(jax.value_and_grad(local_loss), mesh=mesh, in_specs=(split, split, split, whole),
                         out_specs=(whole, split), check_vma=False)

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    queue_rows = mesh.size * local_queue_rows
    return jax.jit(step).lower(
        abstract((all_rows, width), dtype, split), abstract((all_rows, reference_width), dtype, split),
        [abstract((queue_rows, width), dtype, split) for width in (width, reference_width)[:num_queues]],
        abstract((), jnp.int32, whole),
    ).compile()


@pytest.mark.parametrize("topology, dtype", [("v5e:2x4", jnp.bfloat16), ("v3:2x2", jnp.float32)],
                         ids=lambda value: value if isinstance(value, str) else None)
def test_compiles_without_the_score_block(topology, dtype):
    compiled = compile_loss(topology, dtype, all_rows=512, local_queue_rows=131072, widths=(384, 384))
    assert compiled.as_text().count("tpu_custom_call") >= 2  # forward and dZ
    score_bytes = 512 * 131072 * 4  # of one side; the materialised form holds two such arrays
    assert compiled.memory_analysis().temp_size_in_bytes < score_bytes / 20


@pytest.mark.parametrize("dtype, sizes", [
    (jnp.bfloat16, {"all_rows": 1024, "local_queue_rows": 16512, "widths": (1024, 1024), "filling": True}),
    (jnp.bfloat16, {"all_rows": 8, "local_queue_rows": 8191, "widths": (1024, 312), "num_queues": 2}),
    (jnp.float32, {"all_rows": 1000, "local_queue_rows": 2050, "widths": (1024, 768), "num_queues": 2}),
    (jnp.float32, {"all_rows": 128, "local_queue_rows": 8192, "widths": (128, 128)}),
])
def test_default_blocks_fit(dtype, sizes):
    assert compile_loss("v5e:2x4", dtype, **sizes).as_text().count("tpu_custom_call") >= 2


def test_bfloat16_on_v3_is_refused():
    with pytest.raises(ValueError, match="TPU v3"):
        compile_loss("v3:2x2", jnp.bfloat16, all_rows=8, local_queue_rows=256, widths=(128, 128))
