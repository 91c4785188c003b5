"""Programs compiled for TPUs without one: one device's loss, the loss over devices, and the whole training step.

libtpu compiles from shapes, for a topology that is only described: nothing is computed. Call prepare_compiler before
anything else uses jax.

Legend: b query rows per device, N keys, D embedding width.
"""

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.packing import PackedTexts
from kernels.attention.api import attend
from kernels.contrastive.api import similarity_logsumexp
from kernels.dropout import DropoutKeys
from model.config import EncoderConfig, ModelConfig
from model.encoder import transformer_layer
from model.parameters import abstract, declare
from sharding.layout import DEVICES, SPLIT, WHOLE, Layout, ShardState, make_layout
from training.objectives.contrastive import contrastive_loss, contrastive_objective
from training.objectives.objective import Objective, StepBatch
from training.optimizer import learning_rate_schedule, make_optimizer
from training.settings import OptimizerSettings
from training.step import initial_state, make_loss_and_gradient, make_train_step, state_specs

SCALE = 20.0


class Program(NamedTuple):
    compiled: jax.stages.Compiled
    jaxpr: Any  # as traced: unlike cost_analysis it tells how often loops and kernel grids run
    seconds: float  # to compile, without tracing
    cpu_seconds: float  # of all threads; other work on the machine hardly changes it

    @property
    def temp_bytes(self) -> int:
        """HBM that the program needs on each device, without its arguments and results."""
        return self.compiled.memory_analysis().temp_size_in_bytes

    @property
    def bytes_accessed(self) -> int:
        """XLA's count of the bytes that all instructions read and write, in HBM or VMEM, transfers included."""
        return int(self.compiled.cost_analysis()["bytes accessed"])


def prepare_compiler() -> None:
    """Lets libtpu start without a TPU, beside other processes that use it; ValueError if it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("no libtpu: pip install the version that jax[tpu] names")
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def topology_layout(topology: str, shard_state: ShardState = "none", shard_devices: int = 0) -> Layout:
    """The layout over all devices of a topology such as "v5e:2x4"."""
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}  # one device a chip, as it runs
    devices = topologies.get_topology_desc(topology, platform="tpu", **options).devices
    return make_layout(shard_state, shard_devices, devices)


def topology_mesh(topology: str) -> Mesh:
    """The mesh over all devices of a topology."""
    return topology_layout(topology).mesh


def compile_similarity(
    mesh: Mesh,
    dtype: jnp.dtype,
    *,
    rows: int,
    columns: int,
    width: int,
    symmetric: bool = True,
    masked: bool = True,
    **options,
) -> Program:
    """Log-sum-exps and gradients of `rows` queries [b, D] per device against `columns` keys [N, D]; no collective.

    The options are those of kernels.contrastive.api.similarity_logsumexp.
    """

    def on_each_device(queries, keys, scale, query_labels, key_labels, positives):
        labels = {"query_labels": query_labels, "key_labels": key_labels, "positives": positives} if masked else {}
        row_lse, column_lse, statistics = similarity_logsumexp(
            queries, keys, scale, columns=symmetric, **labels, **options)
        return jnp.sum(row_lse) + (jnp.sum(column_lse) if symmetric else 0.0), statistics

    step = jax.shard_map(
        jax.value_and_grad(on_each_device, argnums=(0, 1, 2), has_aux=True), mesh=mesh,
        in_specs=(SPLIT, WHOLE, WHOLE, SPLIT, WHOLE, SPLIT),
        out_specs=((WHOLE, SPLIT), (SPLIT, WHOLE, WHOLE)), check_vma=False,
    )
    all_rows = mesh.size * rows
    return compile_program(
        step, _array(mesh, SPLIT, dtype, all_rows, width), _array(mesh, WHOLE, dtype, columns, width),
        _array(mesh, WHOLE, jnp.float32), _array(mesh, SPLIT, jnp.int32, all_rows, 2),
        _array(mesh, WHOLE, jnp.int32, columns, 2), _array(mesh, SPLIT, jnp.int32, all_rows),
    )


def compile_loss(mesh: Mesh, dtype: jnp.dtype, *, examples: int, width: int, **options) -> Program:
    """The symmetric loss over all devices and its gradient, from the embeddings of `examples` pairs per device.

    The options are those of training.objectives.contrastive.contrastive_loss.
    """

    def on_each_device(embeddings, text_ids):
        return contrastive_loss(embeddings, text_ids, texts_per_example=2, scale=SCALE, symmetric=True,
                                axis_name=DEVICES, dtype=dtype, **options)

    def share_and_gradient(embeddings, text_ids):
        share, gradient = jax.value_and_grad(on_each_device, has_aux=True)(embeddings, text_ids)
        return jax.lax.psum(share, DEVICES), gradient

    step = jax.shard_map(share_and_gradient, mesh=mesh, in_specs=(SPLIT, SPLIT), out_specs=(WHOLE, SPLIT),
                         check_vma=False)
    return compile_program(step, _array(mesh, SPLIT, jnp.float32, mesh.size, 2 * examples, width),
                           _array(mesh, SPLIT, jnp.uint32, mesh.size, 2 * examples, 2))


def compile_attention(
    mesh: Mesh, encoder: EncoderConfig, dtype: jnp.dtype, *, rows: int, row_length: int, implementation: str
) -> Program:
    """Attention over `rows` packed rows per device, with the encoder's dropout, and its gradient."""

    def on_each_device(qkv, segments, dropout, gradient):
        out, pull_back = jax.vjp(lambda qkv: attend(
            qkv, segments, dropout, num_heads=encoder.num_heads, rate=encoder.attention_dropout,
            implementation=implementation), qkv)
        return out, *pull_back(gradient)

    return _compile_over_rows(mesh, on_each_device, encoder, dtype, rows, row_length, 3 * encoder.hidden_size)


def compile_layer(
    mesh: Mesh, encoder: EncoderConfig, dtype: jnp.dtype, *, rows: int, row_length: int, implementation: str
) -> Program:
    """One layer over `rows` packed rows per device, with dropout, and the gradient of its input and its weights."""
    layers = abstract(declare(ModelConfig(encoder, "mean", (), True, row_length)))["layers"]
    weights = jax.tree.map(lambda leaf: _array(mesh, WHOLE, leaf.dtype, *leaf.shape[1:]), layers)

    def on_each_device(hidden, segments, dropout, gradient, weights):
        out, pull_back = jax.vjp(lambda hidden, weights: transformer_layer(
            weights, encoder, hidden, segments, jnp.uint32(0), dropout, implementation), hidden, weights)
        return out, *pull_back(gradient)

    return _compile_over_rows(mesh, on_each_device, encoder, dtype, rows, row_length, encoder.hidden_size, weights)


def _compile_over_rows(mesh, on_each_device, encoder: EncoderConfig, dtype, rows, row_length, width, *weights):
    rows *= mesh.size
    step = jax.shard_map(on_each_device, mesh=mesh, in_specs=(SPLIT,) * 4 + (WHOLE,) * len(weights), out_specs=SPLIT,
                         check_vma=False)
    key = _array(mesh, SPLIT, jnp.uint32, rows)
    return compile_program(
        step, _array(mesh, SPLIT, dtype, rows, row_length, width), _array(mesh, SPLIT, jnp.int32, rows, row_length),
        DropoutKeys(key, key), _array(mesh, SPLIT, dtype, rows, row_length, encoder.hidden_size), *weights)


def compile_train_step(
    layout: Layout,
    model: ModelConfig,
    dtype: jnp.dtype,
    *,
    examples: int,
    rows: int,
    row_length: int,
    remat: bool = True,
    attention_implementation: str = "auto",
    objective: Objective | None = None,
) -> Program:
    """The step of `examples` pairs per device in one packed block, gradient and optimizer, as one program.

    Training runs it as two programs: the optimizer is then not compiled anew for each number of rows. The default
    objective is the contrastive one.
    """
    mesh = layout.mesh
    objective = objective or contrastive_objective(
        model, scale=SCALE, learn_scale=False, symmetric="always", key_exchange="all_gather", dtype=dtype,
        implementation="auto",
    )
    loss_and_gradient = make_loss_and_gradient(
        model, layout, objective, texts_per_example=2, dropout_seed=0, dtype=dtype, remat=remat,
        attention_implementation=attention_implementation,
    )
    settings = OptimizerSettings(weight_decay=0.01)
    schedule = learning_rate_schedule(settings)
    optimizer = make_optimizer(settings, schedule)
    initial = functools.partial(initial_state, optimizer=optimizer, objective=objective)
    state = jax.tree.map(
        lambda leaf, spec: _array(mesh, spec, leaf.dtype, *leaf.shape),
        jax.eval_shape(initial, abstract(declare(model) | objective.parameters)),
        state_specs(model, objective, optimizer, layout))
    blocks, texts = mesh.size, 2 * examples
    in_rows = _array(mesh, SPLIT, np.int32, blocks, rows, row_length)
    of_texts = _array(mesh, SPLIT, np.int32, blocks, texts)
    packed = PackedTexts(
        tokens=in_rows, segments=in_rows, positions=in_rows, text_rows=of_texts, text_segments=of_texts,
        text_ids=_array(mesh, SPLIT, np.uint32, blocks, texts, 2),
    )
    train_step = make_train_step(model, layout, objective, loss_and_gradient, optimizer, schedule)
    return compile_program(train_step, state, StepBatch(packed), donate=(0,))


def compile_program(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> Program:
    """Traces the function for the arguments' shapes and shardings and compiles it for the devices of these."""
    traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
    lowered = traced.lower()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    return Program(compiled, traced.jaxpr.jaxpr, time.perf_counter() - begin, time.process_time() - cpu_begin)


def _array(mesh: Mesh, spec: PartitionSpec, dtype, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
