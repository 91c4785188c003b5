"""Compiled for TPUs, the ring never holds the gathered keys, and its hops are under way during the kernels."""

import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sharding.mesh import DATA_AXIS, make_mesh
from tests.training.test_compile_tpu import largest_array
from training.losses import contrastive_loss

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def compile_loss_and_gradient(key_exchange: str, topology: str, examples: int, width: int, texts_per_example: int = 2,
                              dtype=jnp.bfloat16):
    """The loss of `examples` on each device of the topology and its gradient for their embeddings."""
    from jax.experimental import topologies

    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    mesh = make_mesh(topologies.get_topology_desc(topology, platform="tpu").devices)
    split = PartitionSpec(DATA_AXIS)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(split, split), out_specs=(PartitionSpec(), split),
                       check_vma=False)
    def on_each_device(embeddings, text_ids):
        loss, gradient = jax.value_and_grad(contrastive_loss)(
            embeddings, text_ids, texts_per_example=texts_per_example, scale=20.0, symmetric=texts_per_example == 2,
            axis_name=DATA_AXIS, key_exchange=key_exchange, dtype=dtype)
        return jax.lax.psum(loss, DATA_AXIS), gradient

    def placed(last, dtype):
        return jax.ShapeDtypeStruct((mesh.size, texts_per_example * examples, last), dtype,
                                    sharding=NamedSharding(mesh, split))

    return jax.jit(on_each_device).lower(placed(width, jnp.float32), placed(2, np.uint32)).compile()


def kernels_during_permutes(text: str, smallest: int) -> list[int]:
    """For each permute in a loop, of arrays of `smallest` elements at least: the kernels between its start and its end.

    The program is scheduled: what stands between the two runs while the bytes are under way.
    """
    kernels, kernels_before, counts = 0, {}, []
    for line in text.splitlines():
        name = line.strip().removeprefix("ROOT ").split(" = ")[0]
        if "tpu_custom_call" in line:
            kernels += 1
        elif " collective-permute-start(" in line and "/while/body/" in line and largest_array(line) >= smallest:
            kernels_before[name] = kernels
        elif " collective-permute-done(" in line:
            start = re.search(r"collective-permute-done\((%[\w.-]+)\)", line)[1]
            if start in kernels_before:
                counts.append(kernels - kernels_before[start])
    return counts


def test_ring_holds_no_gathered_keys():
    """So many keys that all of them would not fit in VMEM, which is not counted as temporary memory."""
    examples, width, num_devices = 4096, 768, 8
    gathered, *rings = (compile_loss_and_gradient(exchange, "v5e:2x4", examples, width)
                        for exchange in ("all_gather", "ring", "bidirectional_ring"))
    gathered_keys = num_devices * examples * width
    assert largest_array(gathered.as_text()) >= gathered_keys
    for ring, ways in zip(rings, (1, 2), strict=True):
        text = ring.as_text()
        assert largest_array(text) < gathered_keys
        assert ring.memory_analysis().temp_size_in_bytes < gathered.memory_analysis().temp_size_in_bytes / 10
        counts = kernels_during_permutes(text, smallest=examples * width // ways)
        assert len(counts) == 3 * ways and min(counts) >= 1, counts  # keys forward and backward, the keys' gradient
