"""Shared by all benchmarks: flags, the ratio of interleaved measurements, the last line, the exit status."""

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Literal

from benchmarks.processes import stop_on_signals
from flags import REQUIRED, flag, run_program


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    threads: int = flag(2, "cores and threads of each side", minimum=1)
    seed: int = flag(0, "seed of all random draws: texts, vectors, their order, weights, dropout", minimum=0)


@dataclasses.dataclass(frozen=True)
class PeerBenchmarkConfig(BenchmarkConfig):
    peer_python: str = flag("", "Python with sentence-transformers 6; empty: .venv-peer, created on first use")


@dataclasses.dataclass(frozen=True)
class DataBenchmarkConfig(PeerBenchmarkConfig):
    data_dir: str = flag(REQUIRED, "folder with train/*.jsonl.gz and eval/stsb.tsv")


@dataclasses.dataclass(frozen=True)
class DtypeConfig:
    """For benchmarks that only train with allpairs; machine.resolved_dtype resolves "auto"."""

    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "dtype of activations and matrix products; auto: bfloat16 if the CPU has instructions for it, else "
                "float32")


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Medians of interleaved rates, and the ratio ours / theirs: its median and its range over the repetitions."""

    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


def paired_ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Ratio of rates measured one right after the other: the median of the ratios of the repetitions."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    medians = [statistics.median(values) for values in (ours, theirs, ratios)]
    return Ratio(*medians, lowest=min(ratios), highest=max(ratios))


def print_result(name: str, ratio: float, target: float, met: bool, **more) -> None:
    """The last line of every benchmark: one JSON object."""
    print(json.dumps({"name": name, "ratio": round(ratio, 3), "target": target, "met": bool(met), **more}), flush=True)


def run_benchmark(config_type: type, benchmark: Callable) -> None:
    """`python -m benchmarks.NAME`: the config's fields are the flags. Exit status 1: the reason is on the last line."""
    module = sys.modules["__main__"]
    stop_on_signals(module.__spec__.name)
    try:
        run_program(f"python -m {module.__spec__.name}", config_type, benchmark, sys.argv[1:],
                    description=module.__doc__)
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > 128:  # by a signal: threads that still work would crash Python
            sys.stdout.flush()
            os._exit(ended.code)
        raise
