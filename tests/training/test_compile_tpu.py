"""The whole training step compiles for TPUs, with the Pallas kernel in it and one reduction of the gradients."""

import dataclasses
import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.packing import PackedTexts
from model.parameters import abstract, declare
from sharding.mesh import DATA_AXIS, make_mesh
from tests.training.test_parallel import MODEL
from training.step import make_loss_and_gradient

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
ENCODER = dataclasses.replace(MODEL.encoder, hidden_size=128, intermediate_size=256, max_positions=128)


@pytest.mark.parametrize("topology, dtype", [("v5e:2x4", jnp.bfloat16), ("v3:2x2", jnp.float32)])
def test_step_compiles(topology, dtype):
    from jax.experimental import topologies

    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    mesh = make_mesh(topologies.get_topology_desc(topology, platform="tpu").devices)
    blocks, examples, rows, length = mesh.size, 16, 8, 128
    model = dataclasses.replace(MODEL, encoder=ENCODER)
    loss_and_gradient = make_loss_and_gradient(
        model, mesh, texts_per_example=2, scale=20.0, symmetric=True, dropout_seed=0, dtype=dtype, remat=True,
        implementation="auto",
    )

    def placed(tree, spec):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree)

    parameters = placed(abstract(declare(model)), PartitionSpec())
    step = placed(jax.ShapeDtypeStruct((), np.int32), PartitionSpec())
    int32, texts = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32), 2 * examples
    packed = placed(PackedTexts(
        tokens=int32((blocks, rows, length)), segments=int32((blocks, rows, length)),
        positions=int32((blocks, rows, length)), text_rows=int32((blocks, texts)),
        text_segments=int32((blocks, texts)), text_ids=jax.ShapeDtypeStruct((blocks, texts, 2), np.uint32),
    ), PartitionSpec(DATA_AXIS))
    text = jax.jit(loss_and_gradient).lower(parameters, packed, step).compile().as_text()
    assert "tpu_custom_call" in text, "the Pallas kernel is in the step"
    largest = max(np.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))
    reductions = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    of_gradients = [line for line in reductions if largest_array(line) >= largest]
    assert len(of_gradients) == 1, "\n".join(line[:300] for line in reductions)


def largest_array(line: str) -> int:
    """Elements of the largest array named in a line of HLO."""
    return max(np.prod([int(size) for size in shape.split(",") if size], initial=1)
               for shape in re.findall(r"\w\d+\[([\d,]*)\]", line))
