"""Our loss and training step compiled for each TPU by libtpu: compile time, memory, arithmetic, collectives.

    python -m benchmarks.compile_tpu [--targets=v3,v5e] [--local_batch=4096 --global_batch=32768 --width=768]

For each target, of the symmetric loss and its gradient on one device (local batch b, global batch N, width D):
  temp    HBM beside arguments and results, through kernels.contrastive.api and materialised (kernels/contrastive/
          reference.py). If the latter does not compile, the b N float32 scores that it must hold are taken.
  FLOPs   of the matrix products, in units of u = b N D, over 8u, the least for a loss that recomputes its scores. They
          are counted in the traced program, times the steps of loops and kernel grids.
Then, with --full_step, for a training step of a BERT of that width with --step_batch pairs per device, on few chips and
on 256 of each target: the collectives of the compiled schedule, how often the gradient is reduced, and temp.
With --scaling, on 8 and 256 v5e chips with a fixed batch per device: temp of the loss over all devices, with its keys
gathered or on a ring, beside the b N float32 scores that the materialised form must hold at least.

No TPU is needed, and nothing is run. Bytes and collectives are those of one device; buffers that XLA keeps in VMEM are
not in temp. Compile times are wall time and the CPU time of all threads, which other work on the machine affects less.
"""

import collections
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness import print_result, run_benchmark
from flags import flag
from model.config import EncoderConfig, ModelConfig
from model.parameters import declare
from plan.counts import Collective, collectives, matrix_flops
from plan.programs import (
    Program,
    compile_loss,
    compile_similarity,
    compile_train_step,
    prepare_compiler,
    topology_layout,
    topology_mesh,
)

MEMORY_TARGET = 20.0  # temp of the materialised form over ours
FLAT = 1.05  # largest growth of temp from 8 to 256 chips
COMPILE_SECONDS_TARGET = 60.0  # of CPU time, for 256 chips
FLOOR = 8  # u FLOPs: forward 2u, backward 6u with the scores recomputed
ROW_LENGTH = 128


class Target(NamedTuple):
    topology: str
    large: str  # 256 chips; those of v3 and tpu7x are two devices each
    dtype: jnp.dtype


TARGETS = {
    "v3": Target("v3:2x2", "v3:16x16", jnp.float32),  # its Mosaic kernels take no bfloat16 operand
    "v4": Target("v4:2x2x1", "v4:4x8x8", jnp.bfloat16),
    "v5e": Target("v5e:2x4", "v5e:16x16", jnp.bfloat16),
    "v5p": Target("v5p:2x2x2", "v5p:4x8x8", jnp.bfloat16),
    "v6e": Target("v6e:4x4", "v6e:16x16", jnp.bfloat16),
    "tpu7x": Target("tpu7x:2x2x1", "tpu7x:4x8x8", jnp.bfloat16),
}
SCALING = TARGETS["v5e"].topology, TARGETS["v5e"].large  # 8 and 256 chips


@dataclasses.dataclass(frozen=True)
class CompileBenchmarkConfig:
    targets: tuple[str, ...] = flag(tuple(TARGETS), "TPUs to compile for")
    local_batch: int = flag(4096, "pairs a device in the loss", minimum=1)
    global_batch: int = flag(32768, "keys that a device's queries meet in the loss", minimum=1)
    width: int = flag(768, "width of an embedding, and of the encoder of the whole step: a multiple of 64", minimum=1)
    full_step: bool = flag(True, "also compile the whole training step, for few chips and for 256")
    step_batch: int = flag(128, "pairs a device in the whole step, of two texts of 64 tokens", minimum=1)
    layers: int = flag(
        12, "layers of the encoder in the whole step; they are a loop, and cost no time to compile", minimum=1)
    scaling: bool = flag(True, "also compile the loss over all devices for 8 and 256 v5e chips")


class LossResult(NamedTuple):
    time: str
    temp_bytes: int
    flops: float  # in units of u
    naive_bytes: int  # temp of the materialised form, or what it must hold at least
    naive_failure: str  # why the materialised form did not compile; empty: it did


class StepResult(NamedTuple):
    devices: int
    time: str
    cpu_seconds: float
    temp_bytes: int
    collectives: list[Collective]
    gradient_reductions: float


class ScalingResult(NamedTuple):
    """The loss over all devices and its gradient, with a fixed batch per device."""

    devices: int
    time: str
    cpu_seconds: float
    temp_bytes: int
    scores_bytes: int  # of b N float32 scores


def benchmark(config: CompileBenchmarkConfig) -> None:
    unknown = [name for name in config.targets if name not in TARGETS]
    if unknown:
        raise ValueError(f"--targets={','.join(unknown)}: none of {', '.join(TARGETS)}")
    prepare_compiler()
    print(f"loss and gradient, local {config.local_batch} x {config.global_batch} x {config.width}", flush=True)
    losses, steps, scaling = {}, {}, {}
    for name in config.targets:
        losses[name] = measure_loss(config, TARGETS[name])
        print(f"{name:6s} {describe_loss(losses[name])}", flush=True)
    if config.full_step:
        print(f"whole step, {config.layers} layers of {config.width}, {config.step_batch} pairs a device", flush=True)
        for name in config.targets:
            target, steps[name] = TARGETS[name], []
            for topology in (target.topology, target.large):
                steps[name].append(measure_step(config, topology, target.dtype))
                print(f"{topology:12s} {describe_step(steps[name][-1])}", flush=True)
    if config.scaling:
        print(f"loss over all devices, {config.local_batch} pairs a device", flush=True)
        for key_exchange in ("all_gather", "ring"):
            scaling[key_exchange] = []
            for topology in SCALING:
                scaling[key_exchange].append(measure_scaling(config, topology, key_exchange))
                print(f"{topology:12s} {key_exchange:10s} {describe_scaling(scaling[key_exchange][-1])}", flush=True)
    report(losses, steps, scaling)


def measure_loss(config: CompileBenchmarkConfig, target: Target) -> LossResult:
    mesh, dtype = topology_mesh(target.topology), target.dtype
    sizes = {"rows": config.local_batch, "columns": config.global_batch, "width": config.width}
    program = compile_similarity(mesh, dtype, **sizes)
    try:
        naive_bytes = compile_similarity(mesh, dtype, **sizes, implementation="reference").temp_bytes
        naive_failure = ""
    except jax.errors.JaxRuntimeError as error:
        naive_bytes, naive_failure = 4 * config.local_batch * config.global_batch, str(error).splitlines()[0]
    u = math.prod(sizes.values())
    return LossResult(compile_time(program), program.temp_bytes, matrix_flops(program.jaxpr) / u, naive_bytes,
                      naive_failure)


def measure_step(config: CompileBenchmarkConfig, topology: str, dtype: jnp.dtype) -> StepResult:
    layout, model = topology_layout(topology), bert(config.width, config.layers)
    program = compile_train_step(layout, model, dtype, examples=config.step_batch, rows=config.step_batch,
                                 row_length=ROW_LENGTH)
    found = collectives(program.compiled.as_text())
    keys = layout.mesh.size * config.step_batch
    return StepResult(layout.mesh.size, compile_time(program), program.cpu_seconds, program.temp_bytes, found,
                      gradient_reductions(found, model, keys * config.width))


def measure_scaling(config: CompileBenchmarkConfig, topology: str, key_exchange: str) -> ScalingResult:
    mesh = topology_mesh(topology)
    loss = compile_loss(mesh, jnp.bfloat16, examples=config.local_batch, width=config.width, key_exchange=key_exchange)
    return ScalingResult(mesh.size, compile_time(loss), loss.cpu_seconds, loss.temp_bytes,
                         4 * mesh.size * config.local_batch**2)


def bert(width: int, layers: int) -> ModelConfig:
    """BERT's proportions and vocabulary: 768 and 12 give BERT-base."""
    encoder = EncoderConfig(
        family="bert", vocab_size=30522, hidden_size=width, num_layers=layers, num_heads=width // 64,
        intermediate_size=4 * width, max_positions=512, type_vocab_size=2, activation="gelu", layer_norm_epsilon=1e-12,
        hidden_dropout=0.1, attention_dropout=0.1, pad_token_id=0, position_offset=0, initializer_range=0.02,
        pooler=False,
    )
    return ModelConfig(encoder, pooling="mean", dense=(), normalize=True, max_length=ROW_LENGTH)


def gradient_reductions(found: list[Collective], model: ModelConfig, key_elements: int) -> float:
    """All-reduced bytes over the bytes of the gradient: how often it is reduced (XLA may split or combine reductions).

    Arrays as large as all keys are left out, because XLA uses an all-reduce on some topologies to gather the keys and
    to scatter the sum of their gradients. Rounded to one decimal place, as log-sum-exps of columns are reduced too.
    """
    gradient_bytes = sum(4 * math.prod(parameter.shape) for parameter in jax.tree.leaves(declare(model)))
    reduced = [each.bytes for each in found if each.kind == "all-reduce" and each.largest != key_elements]
    return round(sum(reduced) / gradient_bytes, 1)


def compile_time(program: Program) -> str:
    return f"{program.seconds:.1f} s ({program.cpu_seconds:.1f} s of CPU)"


def describe_loss(result: LossResult) -> str:
    naive = f"{megabytes(result.naive_bytes)} materialised"
    if result.naive_failure:
        naive = (f"at least {megabytes(result.naive_bytes)} materialised, which does not compile: "
                 f"{result.naive_failure}")
    return (f"compiled in {result.time}; {result.flops:.2f}u FLOPs, {result.flops / FLOOR:.2f} of the "
            f"floor; temp {megabytes(result.temp_bytes)}, {naive}")


def describe_step(result: StepResult) -> str:
    return (f"{result.devices:3d} devices, compiled in {result.time}; temp {megabytes(result.temp_bytes)}; "
            f"gradient reductions: {result.gradient_reductions}; {', '.join(collective_totals(result.collectives))}")


def describe_scaling(result: ScalingResult) -> str:
    return (f"{result.devices:3d} devices, compiled in {result.time}; temp {megabytes(result.temp_bytes)}, 1/"
            f"{result.scores_bytes / result.temp_bytes:.1f} of the scores")


def collective_totals(found: list[Collective]) -> list[str]:
    """"all-gather 2 x, 50.3 MB in all" of each kind."""
    times, sizes = collections.Counter(), collections.Counter()
    for collective in found:
        times[collective.kind] += 1
        sizes[collective.kind] += collective.bytes
    return [f"{times[kind]} {kind} of {megabytes(sizes[kind])} in all" for kind in sorted(times)]


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def report(
    losses: dict[str, LossResult], steps: dict[str, list[StepResult]], scaling: dict[str, list[ScalingResult]]
) -> None:
    """Prints the results: `steps` by target and `scaling` by key exchange, on few chips and on 256."""
    ratios = {name: result.naive_bytes / result.temp_bytes for name, result in losses.items()}
    reductions = {name: [step.gradient_reductions for step in of_target] for name, of_target in steps.items()}
    growth = {name: round(many.temp_bytes / few.temp_bytes, 3) for name, (few, many) in (steps | scaling).items()}
    cpu_seconds = {name: round(many.cpu_seconds, 1) for name, (_, many) in (steps | scaling).items()}
    for name, times in growth.items():
        print(f"{name:10s} to 256 chips: temp grows to {times} times (target at most {FLAT}); compiled in "
              f"{cpu_seconds[name]} s of CPU (target {COMPILE_SECONDS_TARGET:.0f})")
    conditions = [
        min(ratios.values()) >= MEMORY_TARGET, all(each == 1 for pair in reductions.values() for each in pair),
        all(times <= FLAT for times in growth.values()),
        all(seconds <= COMPILE_SECONDS_TARGET for seconds in cpu_seconds.values()),
    ]
    print_result(
        "compile_tpu", min(ratios.values()), MEMORY_TARGET, all(conditions),
        memory_ratios={name: round(ratio, 1) for name, ratio in ratios.items()},
        flops_over_floor={name: round(result.flops / FLOOR, 3) for name, result in losses.items()},
        gradient_reductions=reductions, temp_growth=growth, compile_cpu_seconds=cpu_seconds,
    )


if __name__ == "__main__":
    run_benchmark(CompileBenchmarkConfig, benchmark)
