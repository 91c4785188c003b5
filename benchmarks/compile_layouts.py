"""What each layout of the train state costs, from programs that libtpu compiles without a TPU: memory and collectives.

    python -m benchmarks.compile_layouts [--encoders=roberta-large] [--topologies=v5e:4x4]

For each encoder, topology and --shard_state, the whole training step in bfloat16 with recomputed layers:
  state     bytes of the program's arguments on one device, which are parameters, moments and the batch
  parameters, moments, gradient: those of them, and of the gradient before it is reduced, by the layout's specs
  temp      bytes beside arguments and results: activations, the gradient, gathered weights
  sent      bytes that one device sends in a step, by kind of collective: counted in the compiled schedule, loops
            multiplied out, and beside it what the formula of `bytes_expected` gives
  hidden    collectives that have a start and a done, so that work can hide them, of all
With --lookup, the ways to look up tokens in a split table: its columns, its rows, and all of it gathered.
"""

import collections
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.compile_tpu import megabytes
from benchmarks.harness import print_result, run_benchmark
from flags import flag
from model.config import EncoderConfig, ModelConfig
from model.parameters import declare
from plan.counts import collectives
from plan.programs import Program, compile_program, compile_train_step, prepare_compiler, topology_layout
from sharding.layout import (
    REPLICA,
    SHARD,
    SPLIT,
    SPLIT_STATE,
    Layout,
    partition_spec,
    shard_axis,
    shardings,
    state_spec,
)
from sharding.shares import gather_share, look_up

ENCODERS = {  # name -> vocabulary, layers, width, heads, positions
    "roberta-large": (50265, 24, 1024, 16, 512),
    "xlm-roberta-large": (250002, 24, 1024, 16, 512),
}
TOPOLOGIES = {"v5e:4x4": 16, "v5e:16x16": 16}  # -> --shard_devices: the whole grid, one row of it
DTYPE = jnp.bfloat16
WITHIN = 0.05  # of the formula


@dataclasses.dataclass(frozen=True)
class LayoutsConfig:
    encoders: tuple[str, ...] = flag(tuple(ENCODERS), "encoders whose training step is compiled")
    topologies: tuple[str, ...] = flag(tuple(TOPOLOGIES), "TPU topologies, of those that the table names")
    pairs: int = flag(64, "pairs per device, of two texts of 64 tokens", minimum=1)
    lookup: bool = flag(True, "also compare the ways to look up tokens in a split table")


def benchmark(config: LayoutsConfig) -> None:
    for given, known in ((config.encoders, ENCODERS), (config.topologies, TOPOLOGIES)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{', '.join(unknown)}: none of {', '.join(known)}")
    prepare_compiler()
    deviations, ratios = {}, {}
    for name in config.encoders:
        for topology in config.topologies:
            sent_by_none = 0
            for shard_state in SPLIT_STATE:
                layout = topology_layout(topology, shard_state, TOPOLOGIES[topology])
                case = f"{name}, {topology}, {shard_state}"
                sent, expected = measure(case, encoder_model(name), layout, config.pairs)
                deviations[case] = abs(sent / expected - 1)
                sent_by_none = sent_by_none or sent
                if shard_state == "optimizer":
                    ratios[case] = sent / sent_by_none
    if config.lookup:
        for topology in config.topologies:
            compare_lookups(topology, config.pairs)
    worst = max(deviations, key=deviations.get)
    print(f"farthest from the formula: {worst}, {100 * deviations[worst]:.1f} %")
    print_result("compile_layouts", max(ratios.values()), 1.005,
                 max(ratios.values()) <= 1.005 and deviations[worst] <= WITHIN,
                 bytes_of_optimizer_over_none=ratios, deviations=deviations)


def encoder_model(name: str) -> ModelConfig:
    vocabulary, layers, width, heads, positions = ENCODERS[name]
    encoder = EncoderConfig(
        family="roberta", vocab_size=vocabulary, hidden_size=width, num_layers=layers, num_heads=heads,
        intermediate_size=4 * width, max_positions=positions, type_vocab_size=1, activation="gelu",
        layer_norm_epsilon=1e-5, hidden_dropout=0.1, attention_dropout=0.1, pad_token_id=1, position_offset=2,
        initializer_range=0.02, pooler=False)
    return ModelConfig(encoder, "mean", (), True, 128)


def measure(case: str, model: ModelConfig, layout: Layout, pairs: int) -> tuple[int, int]:
    """Compiles the step and prints its line; bytes sent, and as the formula has them."""
    program = compile_train_step(layout, model, DTYPE, examples=pairs, rows=pairs, row_length=128)
    memory = program.compiled.memory_analysis()
    found = collectives(program.compiled.as_text())
    sent = collections.Counter()
    for each in found:
        sent[each.kind] += each.times * each.bytes_sent
    expected = bytes_expected(model, layout, pairs)
    kinds = ", ".join(f"{kind} {megabytes(size)}" for kind, size in sorted(sent.items()) if size >= 1e6)
    parameters, moments = (bytes_held(model, layout, kind) for kind in ("parameters", "optimizer"))
    print(f"{case}: state {megabytes(memory.argument_size_in_bytes)} (parameters {megabytes(parameters)}, moments "
          f"{megabytes(2 * moments)}), gradient {megabytes(parameters)}, temp {megabytes(memory.temp_size_in_bytes)}; "
          f"sent {megabytes(sent.total())}, formula {megabytes(expected)} ({kinds}); hidden "
          f"{sum(each.is_asynchronous for each in found)} of {len(found)} collectives; compiled in "
          f"{program.seconds:.0f} s", flush=True)
    return sent.total(), expected


def bytes_held(model: ModelConfig, layout: Layout, kind: Literal["parameters", "optimizer"]) -> int:
    """Float32 bytes of one array per parameter on one device: the parameters, or one moment."""
    spec_of = state_spec(kind, layout)
    return sum(4 * math.prod(NamedSharding(layout.mesh, spec_of(declared)).shard_shape(declared.shape))
               for declared in jax.tree.leaves(declare(model)))


def bytes_expected(model: ModelConfig, layout: Layout, pairs: int, row_length: int = 128) -> int:
    """Bytes that one device sends in a step, in terms of the layout: of the train state, and of the keys of the loss.

    W devices to a replica, G replicas, n = W G; an array of s elements, b bytes each in the compute dtype. A ring sends
    (W - 1) / W of what it gathers or scatters, and twice that of what it reduces everywhere.
      none         2 * 4 s (n - 1) / n
      optimizer    (4 + 4) s (W - 1) / W                    gradient scattered, parameter gathered
      parameters   (2 b + 4) s (W - 1) / W                  kernels: gathered in both passes, gradient scattered
      both, of what is split, over the replicas             2 * 4 s / W (G - 1) / G
    """
    W, G = math.prod(layout.mesh.shape[name] for name in SHARD), layout.mesh.shape[REPLICA]
    n, b = W * G, jnp.dtype(DTYPE).itemsize
    total = 0.0
    for path, declared in jax.tree_util.tree_leaves_with_path(declare(model)):
        name, size = path[-1].key, math.prod(declared.shape)
        is_split = shard_axis(partition_spec(declared.shape, declared.axes, layout.mesh)) is not None
        if not SPLIT_STATE[layout.shard_state] or not is_split:
            total += 8 * size * (n - 1) / n
            continue
        if layout.shard_state == "optimizer":
            each = 8
        else:
            each = 2 * b + 4 if name.endswith("kernel") else 3 * 4
        if layout.shard_state == "parameters" and name == "token":  # parts of rows, exchanged in both passes; indices
            tokens = pairs * row_length
            total += (2 * b * tokens * model.encoder.hidden_size + 4 * W * tokens) * (W - 1) / W
        else:
            total += each * size * (W - 1) / W
        total += 8 * size / W * (G - 1) / G
    keys = n * pairs * model.embedding_size
    return round(total + (b + 4) * keys * (n - 1) / n)  # keys gathered in the compute dtype, their gradient in float32


def compare_lookups(topology: str, pairs: int) -> None:
    """Bytes sent and temp of the ways to look up a device's tokens in XLM-RoBERTa's table, and of their gradient."""
    layout = topology_layout(topology, "parameters", TOPOLOGIES[topology])
    W = TOPOLOGIES[topology]
    V, D = ENCODERS["xlm-roberta-large"][0], ENCODERS["xlm-roberta-large"][2]
    padded = -(-V // W) * W
    ways = {
        "columns, exchanged": ((V, D), PartitionSpec(None, SHARD), look_up),
        "rows, exchanged": ((padded, D), PartitionSpec(SHARD), look_up),
        "gathered whole": ((padded, D), PartitionSpec(SHARD), lambda share, tokens, shape, dtype: gather_share(
            share, shape, dtype)[tokens]),
    }
    for name, (shape, spec, way) in ways.items():
        program = compile_lookup(layout, shape, spec, way, pairs * 128)
        found = collectives(program.compiled.as_text())
        sent = sum(each.times * each.bytes_sent for each in found)
        print(f"lookup, {topology}, {name}: sent {megabytes(sent)}, temp {megabytes(program.temp_bytes)}", flush=True)


def compile_lookup(layout: Layout, shape: tuple[int, int], spec: PartitionSpec, way: Any, tokens: int) -> Program:
    """The lookup of `tokens` tokens per device, and the gradient of the device's share of the table."""

    def on_each_device(share, indices, gradient):
        rows, pull_back = jax.vjp(lambda share: way(share, indices, shape, DTYPE), share)
        return rows.astype(DTYPE), *pull_back(gradient.astype(rows.dtype))

    step = jax.shard_map(on_each_device, mesh=layout.mesh, in_specs=(spec, SPLIT, SPLIT), out_specs=(SPLIT, spec),
                         check_vma=False)
    arrays = [(shape, np.float32, spec), ((layout.mesh.size * tokens,), np.int32, SPLIT),
              ((layout.mesh.size * tokens, shape[1]), DTYPE, SPLIT)]
    return compile_program(step, *[jax.ShapeDtypeStruct(size, dtype, sharding=shardings(where, layout.mesh))
                                   for size, dtype, where in arrays])


if __name__ == "__main__":
    run_benchmark(LayoutsConfig, benchmark)
