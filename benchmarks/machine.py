"""The CPU of a benchmark: its name, its vector instructions, and how fast it multiplies matrices.

The product rate is measured in the same run as both sides, with the shapes, the dtype and the threads of the model. It
is the rate of the fastest of numpy, XLA and PyTorch, if they are installed. A side's share of it is

    (FLOPs of the encoder's matrix products over real tokens, per second) / (product rate)

by one formula for both sides (encoder_flops): 2 m n k for each product, attention only within a text, no padding, no
recomputation. It is 1 if nothing but these products takes any time.

Legend: D hidden size, F width of the feed-forward layer, L tokens of a text.
"""

import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import WorkerProcess
from model.config import EncoderConfig
from sharding.host import keep_freed_memory

CPU_INFO = pathlib.Path("/proc/cpuinfo")
VECTORS = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("sve", "SVE"), ("asimd", "NEON"))
BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
PRODUCT_TOKENS = 4096  # of the products whose rate is measured: about a training batch of 64 pairs
PRODUCT_SECONDS = 0.4  # of each library, each time
SHARE_TARGET = 0.8  # of the product rate, for encoding and training


class Product(NamedTuple):
    """[rows, inner] times [inner, columns]."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


def use_cpu(threads: int, keep_memory: bool = True) -> None:
    """Confines this process and those it starts to `threads` cores; JAX sizes its thread pool by that when imported.

    Freed memory is kept, as main.py does, unless keep_memory is False.
    """
    if keep_memory:
        keep_freed_memory()
    os.environ["JAX_PLATFORMS"] = "cpu"
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise ValueError(f"--threads={threads} but this process may run on {len(cores)} cores only; lower --threads")
    os.sched_setaffinity(0, cores[:threads])


def describe_machine(threads: int, peer_versions: dict[str, str] | None = None) -> str:
    """The processor, its vectors and the cores used; then a line of versions for each side, if there is a peer."""
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "tokenizers")}
    ours["python"] = platform.python_version()
    listing = "\n".join(
        f"  {side}: " + ", ".join(f"{name} {version}" for name, version in versions.items())
        for side, versions in (("allpairs", ours), ("peer", peer_versions)) if versions
    )
    processor = _cpu_info("model name") or platform.processor() or platform.machine()
    return (f"{processor}, {vector_width()}, {'with' if has_bfloat16() else 'without'} bfloat16 instructions, "
            f"{threads} of {os.cpu_count()} cores\n{listing}")


def _cpu_info(key: str) -> str:
    """The value of the first line of that name in /proc/cpuinfo; "" if there is none."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())  # x86, Arm


def vector_width() -> str:
    """The widest vector instructions, such as "AVX-512"."""
    flags = _cpu_flags()
    return next((name for flag, name in VECTORS if flag in flags), "vector width unknown")


def has_bfloat16() -> bool:
    return bool(_cpu_flags() & BFLOAT16_FLAGS)


def without_unsupported(dtypes: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """({name: dtype} without the bfloat16 ones if the CPU has no instructions for it, a line on each that is left out).

    Without them a CPU computes bfloat16 in float32 and converts: such a measurement is slow and meaningless.
    """
    kept = {name: dtype for name, dtype in dtypes.items() if dtype != "bfloat16" or has_bfloat16()}
    return kept, [f"{name}: this CPU has no bfloat16 instructions" for name in dtypes if name not in kept]


def resolved_dtype(dtype: str) -> str:
    """The dtype that --dtype=auto means on this CPU; any other is returned as it is."""
    return dtype if dtype != "auto" else "bfloat16" if has_bfloat16() else "float32"


def encoder_flops(encoder: EncoderConfig, tokens: int, squared_lengths: int) -> int:
    """FLOPs of the matrix products of one forward pass over texts; forward and backward together take three times that.

    tokens: sum of L over the texts; squared_lengths: sum of L^2. Each layer: 2 sum L D (4 D + 2 F) for the projections
    and the feed-forward part, 4 D sum L^2 for scores and values. Embedding lookup, pooling and loss are left out.
    """
    width = encoder.hidden_size
    projections = 2 * tokens * width * (4 * width + 2 * encoder.intermediate_size)
    return encoder.num_layers * (projections + 4 * width * squared_lengths)


def flops_of_texts(encoder: EncoderConfig, lengths: np.ndarray) -> int:
    """encoder_flops of texts with these numbers of tokens [n]."""
    return encoder_flops(encoder, int(lengths.sum()), int((lengths.astype(np.int64) ** 2).sum()))


def segment_lengths(segments: np.ndarray) -> np.ndarray:
    """Numbers of tokens [n] of the texts in packed rows [..., L], whose segments are 1, 2, ... (0: unused)."""
    rows = segments.reshape(-1, segments.shape[-1])
    numbered = rows + np.arange(len(rows))[:, None] * (rows.max() + 1)
    return np.unique(numbered[rows > 0], return_counts=True)[1]


def layer_products(encoder: EncoderConfig, tokens: int = PRODUCT_TOKENS) -> list[Product]:
    """The four products of a layer with its weights."""
    width, inner = encoder.hidden_size, encoder.intermediate_size
    return [Product(tokens, width, 3 * width), Product(tokens, width, width), Product(tokens, width, inner),
            Product(tokens, inner, width)]


class ProductRate:
    """Measures how fast this machine does some matrix products of one dtype, one after the other."""

    def __init__(self, products: list[Product], dtype: str, torch_worker: WorkerProcess | None = None):
        """torch_worker: a process of benchmarks/peers/product.py for the same products and dtype."""
        self.dtype = dtype
        self._flops = sum(product.flops for product in products)
        self._torch = torch_worker
        generator = np.random.default_rng(0)
        operands = [[generator.standard_normal(shape, np.float32) for shape in (product[:2], product[1:])]
                    for product in products]
        self._passes = {"XLA": _xla_pass(operands, dtype)}
        if dtype == "float32":
            self._passes["numpy"] = lambda: [np.matmul(left, right) for left, right in operands]
        libraries = [*self._passes, *(["PyTorch"] if self._torch else [])]
        self.rates: dict[str, list[float]] = {name: [] for name in libraries}
        for one_pass in self._passes.values():
            one_pass()

    def measure(self) -> float:
        """FLOP/s of the fastest library, now."""
        for name, one_pass in self._passes.items():
            self.rates[name].append(self._flops * passes_per_second(one_pass, PRODUCT_SECONDS))
        if self._torch:
            answer = self._torch.ask(seconds=PRODUCT_SECONDS)
            self.rates["PyTorch"].append(self._flops * answer["passes_per_second"])
        return max(rates[-1] for rates in self.rates.values())

    def __str__(self) -> str:
        each = ", ".join(f"{name} {np.median(rates) / 1e9:.1f}" for name, rates in self.rates.items())
        return f"matrix products of the model's shapes in {self.dtype}, GFLOP/s: {each}"


def _xla_pass(operands: list[list[np.ndarray]], dtype: str) -> Callable[[], Any]:
    import jax

    operands = [[jax.numpy.asarray(array, dtype) for array in pair] for pair in operands]
    product = jax.jit(jax.numpy.matmul)
    return lambda: [jax.block_until_ready(product(left, right)) for left, right in operands]


def passes_per_second(one_pass: Callable[[], Any], seconds: float) -> float:
    begin, passes = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds or not passes:
        one_pass()
        passes += 1
    return passes / elapsed
