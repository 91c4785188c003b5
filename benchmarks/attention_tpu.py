"""Memory traffic of attention over packed rows on each TPU, as libtpu compiles it: plain XLA and the Pallas kernel.

    python -m benchmarks.attention_tpu [--targets=v3,v5e] [--encoders=base] [--row_lengths=128,512] [--tokens=16384]

For each target, encoder and row length, with dropout, forward and backward, on one device:
  HBM       bytes that the instructions of the compiled program read from HBM and write to it: operands and results
            after fusion, without what XLA keeps on the chip. The kernel moves each operand and result once.
  accessed  the same including memory on the chip, and transfers to and from it: XLA's cost_analysis.
  temp      HBM beside arguments and results.
First for attention only, then for one whole layer, last the temp of the training step of an encoder of --layers with
the activations kept (bytes cannot be counted in its loop over layers). No TPU is needed, and nothing is run or timed.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.compile_tpu import TARGETS, Target, bert, megabytes
from benchmarks.harness import print_result, run_benchmark
from flags import flag
from model.config import ModelConfig
from plan.counts import hbm_bytes
from plan.programs import (
    Program,
    compile_attention,
    compile_layer,
    compile_train_step,
    prepare_compiler,
    topology_layout,
    topology_mesh,
)

ENCODERS = {"minilm": (384, 12), "base": (768, 12), "large": (1024, 16)}  # width, heads
TARGET = 1.0  # HBM traffic of XLA over the kernel's: below that the kernel is not worth keeping


@dataclasses.dataclass(frozen=True)
class AttentionBenchmarkConfig:
    targets: tuple[str, ...] = flag(tuple(TARGETS), "TPUs to compile for")
    encoders: tuple[str, ...] = flag(tuple(ENCODERS), "minilm (12 heads of 32), base (12 of 64), large (16 of 64)")
    row_lengths: tuple[str, ...] = flag(("128", "256", "512"), "tokens of a row")
    tokens: int = flag(16384, "tokens of a device: so many rows as they fill", minimum=1)
    layer: bool = flag(True, "also compile one whole layer")
    step: bool = flag(True, "also compile the training step of each encoder, in rows of the first length")
    layers: int = flag(12, "layers of the encoder in the training step", minimum=1)


class Pair(NamedTuple):
    """The same program with each form of attention."""

    xla: Program
    kernel: Program

    @property
    def hbm_bytes(self) -> tuple[int, int]:
        return tuple(hbm_bytes(program.compiled.as_text()) for program in self)

    @property
    def hbm_ratio(self) -> float:
        xla, kernel = self.hbm_bytes
        return xla / kernel


def benchmark(config: AttentionBenchmarkConfig) -> None:
    for name, values, known in (("targets", config.targets, TARGETS), ("encoders", config.encoders, ENCODERS)):
        if unknown := [value for value in values if value not in known]:
            raise ValueError(f"--{name}={','.join(unknown)}: none of {', '.join(known)}")
    prepare_compiler()
    pairs = {}
    for target in config.targets:
        for encoder in config.encoders:
            for length in map(int, config.row_lengths):
                name = f"{target} {encoder}, rows of {length}"
                for what, compile_one in (("attention", compile_attention), ("layer", compile_layer)):
                    if what == "attention" or config.layer:
                        pairs[name, what] = measure(config, TARGETS[target], encoder, length, compile_one)
                        print(f"{name}: {what:9s} {describe(pairs[name, what])}", flush=True)
            if config.step:
                step = measure_step(config, TARGETS[target], encoder)
                pairs[f"{target} {encoder}", "step"] = step
                print(f"{target} {encoder}, step of {config.layers} layers: {describe_temp(step)}", flush=True)
    report(pairs)


def measure(config: AttentionBenchmarkConfig, target: Target, encoder: str, length: int, compile_one: Callable) -> Pair:
    mesh, model = topology_mesh(target.topology), encoder_model(encoder, 1)
    return Pair(*[compile_one(mesh, model.encoder, target.dtype, rows=config.tokens // length, row_length=length,
                              implementation=implementation) for implementation in ("xla", "tpu")])


def measure_step(config: AttentionBenchmarkConfig, target: Target, encoder: str) -> Pair:
    layout, model = topology_layout(target.topology), encoder_model(encoder, config.layers)
    length = config.row_lengths[0]
    rows = config.tokens // int(length)
    return Pair(*[compile_train_step(layout, model, target.dtype, examples=rows, rows=rows, row_length=int(length),
                                     remat=False, attention_implementation=implementation)
                  for implementation in ("xla", "tpu")])


def encoder_model(name: str, layers: int) -> ModelConfig:
    width, heads = ENCODERS[name]
    model = bert(width, layers)
    return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, num_heads=heads))


def describe(pair: Pair) -> str:
    xla, kernel = pair.hbm_bytes
    return (f"HBM {megabytes(xla)}, kernel {megabytes(kernel)}: {xla / kernel:.2f} x; accessed "
            f"{megabytes(pair.xla.bytes_accessed)}, kernel {megabytes(pair.kernel.bytes_accessed)}; "
            f"{describe_temp(pair)}")


def describe_temp(pair: Pair) -> str:
    return f"temp {megabytes(pair.xla.temp_bytes)}, kernel {megabytes(pair.kernel.temp_bytes)}"


def report(pairs: dict[tuple[str, str], Pair]) -> None:
    """Prints the result; its ratio is the smallest one of attention without the rest of the layer."""
    ratios = {name: pair.hbm_ratio for (name, what), pair in pairs.items() if what == "attention"}
    less_memory = all(pair.kernel.temp_bytes <= pair.xla.temp_bytes for pair in pairs.values())
    print_result("attention_tpu", min(ratios.values()), TARGET, min(ratios.values()) > TARGET and less_memory,
                 hbm_ratios={name: round(ratio, 2) for name, ratio in ratios.items()}, less_memory=less_memory)


if __name__ == "__main__":
    run_benchmark(AttentionBenchmarkConfig, benchmark)
