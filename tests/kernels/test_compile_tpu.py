"""The TPU kernels compile for real TPUs (ahead of time, without one) and hold nothing of size [b, N] in HBM."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels.contrastive.api import similarity_logsumexp

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                reason="no libtpu: pip install the version that jax[tpu] names")


os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # only compiles: two test runs may do so at once


def topology_devices(topology: str):
    return np.array(topologies.get_topology_desc(topology, platform="tpu").devices)


def compile_loss(topology: str, dtype, *, rows: int, columns: int, width: int, symmetric: bool = True,
                 masked: bool = True, bound: float | None = None):
    """Loss and gradients of `rows` local queries against `columns` replicated keys, on every device of the topology.

    Where the scores are bounded, the statistics too.
    """
    mesh = Mesh(topology_devices(topology), ("data",))
    num_devices = mesh.size

    def local_loss(queries, keys, scale, query_labels, key_labels, positives):
        labels = {"query_labels": query_labels, "key_labels": key_labels, "positives": positives} if masked else {}
        row_lse, column_lse, *statistics = similarity_logsumexp(
            queries, keys, scale, columns=symmetric, bound=bound, statistics=bound is not None, **labels)
        return jnp.sum(row_lse) + (jnp.sum(column_lse) if symmetric else 0.0), statistics

    split, whole = PartitionSpec("data"), PartitionSpec()
    step = jax.shard_map(
        jax.value_and_grad(local_loss, argnums=(0, 1, 2), has_aux=True), mesh=mesh,
        in_specs=(split, whole, whole, split, whole, split),
        out_specs=((whole, split), (split, whole, whole)), check_vma=False,
    )

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    return jax.jit(step).lower(
        abstract((num_devices * rows, width), dtype, split), abstract((columns, width), dtype, whole),
        abstract((), jnp.float32, whole), abstract((num_devices * rows, 2), jnp.int32, split),
        abstract((columns, 2), jnp.int32, whole), abstract((num_devices * rows,), jnp.int32, split),
    ).compile()


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
    compiled = compile_loss(topology, dtype, **sizes)
    assert compiled.as_text().count("tpu_custom_call") >= 3  # forward, dQ and dK
    score_bytes = sizes["rows"] * sizes["columns"] * 4
    if score_bytes > 2**24:
        assert compiled.memory_analysis().temp_size_in_bytes < score_bytes / 20


def test_bfloat16_on_v3_is_refused():
    with pytest.raises(ValueError, match="TPU v3"):
        compile_loss("v3:2x2", jnp.bfloat16, rows=128, columns=256, width=128)
