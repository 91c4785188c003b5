"""Time and memory of the loss with its gradient on the CPU, symmetric and one-way: ours beside jitted plain jnp.

    python -m benchmarks.contrastive_cpu

Both compute in float32 one device's part of a larger batch: the log-sum-exps of its b rows over the N gathered keys
(one-way: summed_logsumexp) and of all N columns over its rows (symmetric: similarity_logsumexp), its b positive logits,
and the gradients of queries, positives and keys. Plain jnp holds the [b, N] scores. A third form of ours has no bound
on the scores, and so needs a running maximum. All take turns; a ratio is the median over the repetitions. Memory is
what XLA plans beside arguments and results. The CPU seconds of all threads are printed too: other work on the machine
affects them less.

One product [b, N] is timed beside them. Plain jnp takes three products, ours three for the one-way loss and four for
the symmetric one, as it recomputes the scores for the gradient. Their time is the least possible ("floor"). Each
repetition also measures the machine's rate for that product, in numpy or XLA (benchmarks/machine.py), and the share of
it that each form reaches.

Plain jnp allocates its scores again in each call. If freed memory is kept, as in main.py, this costs nothing. With
--nokeep_freed_memory the system zeroes their pages each time, as in a Python program with default settings.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

from benchmarks.harness import BenchmarkConfig, paired_ratio, print_result, run_benchmark
from benchmarks.machine import Product, ProductRate, describe_machine, use_cpu
from flags import flag

TARGET, MEMORY_TARGET = 0.9, 1 / 20
OURS, UNBOUNDED, NAIVE, PRODUCT = "ours", "ours, unbounded", "plain jnp", "one product"
ONE_WAY, ONE_WAY_NAIVE = "ours, one way", "plain jnp, one way"
PRODUCTS = {OURS: 4, UNBOUNDED: 4, NAIVE: 3, ONE_WAY: 3, ONE_WAY_NAIVE: 3, PRODUCT: 1}
PEERS = {OURS: NAIVE, UNBOUNDED: NAIVE, ONE_WAY: ONE_WAY_NAIVE}


@dataclasses.dataclass(frozen=True)
class ContrastiveBenchmarkConfig(BenchmarkConfig):
    rows: int = flag(4096, "queries, b", minimum=1)
    keys: int = flag(16384, "keys, N", minimum=1)
    width: int = flag(384, "embedding width, D", minimum=1)
    scale: float = flag(20.0, "logits are scale * cosine", above=0)
    repeats: int = flag(7, "repetitions that count", minimum=1)
    keep_freed_memory: bool = flag(True, "keep freed memory for the next call, as main.py does")


def compile_forms(config: ContrastiveBenchmarkConfig, operands: Any) -> dict:
    """{name: compiled (queries, positives, keys) -> (loss, gradients)}."""
    import jax
    import jax.numpy as jnp

    from kernels.contrastive.api import similarity_logsumexp, summed_logsumexp
    from kernels.products import UNIT_NORM_PRODUCT

    bound = UNIT_NORM_PRODUCT * config.scale

    def naive_scores(queries, keys):
        return config.scale * jnp.matmul(queries, keys.T, precision="highest")

    def naive(queries, keys):
        scores = naive_scores(queries, keys)
        return jnp.mean(jax.nn.logsumexp(scores, axis=1)) + jnp.mean(jax.nn.logsumexp(scores, axis=0))

    def ours(queries, keys, bound=bound):
        row_lse, column_lse, _ = similarity_logsumexp(queries, keys, config.scale, bound=bound, implementation="xla")
        return jnp.mean(row_lse) + jnp.mean(column_lse)

    def one_way_naive(queries, keys):
        return jnp.mean(jax.nn.logsumexp(naive_scores(queries, keys), axis=1))

    def one_way(queries, keys):
        return summed_logsumexp(queries, keys, config.scale, bound=bound, implementation="xla")[0] / config.rows

    def compiled(logsumexps, sides):
        def loss(queries, positives, keys):
            positive_logits = config.scale * jnp.sum(queries * positives, axis=1)
            return logsumexps(queries, keys) - sides * jnp.mean(positive_logits)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*operands).compile()

    product = jax.jit(lambda queries, positives, keys: jnp.matmul(queries, keys.T, precision="highest"))
    return {OURS: compiled(ours, 2), UNBOUNDED: compiled(functools.partial(ours, bound=None), 2),
            NAIVE: compiled(naive, 2), ONE_WAY: compiled(one_way, 1), ONE_WAY_NAIVE: compiled(one_way_naive, 1),
            PRODUCT: product.lower(*operands).compile()}


def benchmark(config: ContrastiveBenchmarkConfig) -> None:
    if config.keys < config.rows:
        raise ValueError(f"--keys={config.keys} is below --rows={config.rows}: each query's own positive is a key")
    use_cpu(config.threads, config.keep_freed_memory)
    import jax
    import numpy as np

    rng = np.random.default_rng(config.seed)
    operands = [rng.standard_normal((size, config.width), np.float32) for size in (config.rows, config.keys)]
    queries, keys = [jax.device_put(array / np.linalg.norm(array, axis=1, keepdims=True)) for array in operands]
    operands = queries, keys[:config.rows], keys
    print(f"loss and gradient, {config.rows} x {config.keys} x {config.width} float32\n"
          f"{describe_machine(config.threads)}", flush=True)
    forms = compile_forms(config, operands)
    results = {name: jax.block_until_ready(form(*operands)) for name, form in forms.items()}
    difference = max(largest_difference(results[name], results[peer]) for name, peer in PEERS.items())
    seconds, cpu_seconds = {name: [] for name in forms}, {name: [] for name in forms}
    product_rate, product_rates = ProductRate([Product(config.rows, config.width, config.keys)], "float32"), []
    for repeat in range(config.repeats):
        for name, form in forms.items():
            begin, cpu_begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(form(*operands))
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - cpu_begin)
        product_rates.append(product_rate.measure())
        print(f"repetition {repeat + 1}: "
              + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()), flush=True)
    temporary_bytes = {name: form.memory_analysis().temp_size_in_bytes for name, form in forms.items()}
    print(product_rate)
    report(config, seconds, cpu_seconds, product_rates, temporary_bytes, difference)


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of loss and gradients, relative to the largest element of each."""
    import jax
    import numpy as np

    return max(float(np.abs(a - b).max() / np.abs(b).max())
               for a, b in zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(jax.device_get(theirs))))


def report(config: ContrastiveBenchmarkConfig, seconds: dict[str, list[float]], cpu_seconds: dict[str, list[float]],
           product_rates: list[float], temporary_bytes: dict[str, int], difference: float) -> None:
    product_flops = 2 * config.rows * config.keys * config.width
    shares = {name: paired_ratio([PRODUCTS[name] * product_flops / time for time in times], product_rates).ratio
              for name, times in seconds.items()}
    for name, times in seconds.items():
        products, median = PRODUCTS[name], statistics.median(times)
        cpu_median = statistics.median(cpu_seconds[name])
        print(f"{name:18s} {median:6.3f} s ({cpu_median:.3f} CPU s), {products} products at "
              f"{products * product_flops / median / 1e9:6.1f} GFLOP/s, {shares[name]:.0%} of the product rate, "
              f"temporary memory {temporary_bytes[name] / 2**20:7.1f} MiB")
    ratios = {name: paired_ratio(seconds[name], seconds[peer]) for name, peer in PEERS.items()}
    cpu_ratios = {name: paired_ratio(cpu_seconds[name], cpu_seconds[peer]) for name, peer in PEERS.items()}
    floors = {name: PRODUCTS[name] * paired_ratio(seconds[PRODUCT], seconds[peer]).ratio
              for name, peer in PEERS.items()}
    memory_ratios = {name: temporary_bytes[name] / temporary_bytes[peer] for name, peer in PEERS.items()}
    met = {name: ratios[name].ratio <= TARGET and memory_ratios[name] <= MEMORY_TARGET for name in PEERS}
    for name, peer in PEERS.items():
        ratio = ratios[name]
        print(f"{name} / {peer}: time {ratio.ratio:.3f} ({ratio.lowest:.3f} to {ratio.highest:.3f}; floor "
              f"{floors[name]:.3f}), CPU time {cpu_ratios[name].ratio:.3f}, memory {memory_ratios[name]:.4f}")
    print(f"largest relative difference of a result: {difference:.1e}")
    print_result(
        "contrastive_cpu", ratios[OURS].ratio, TARGET, met[OURS],
        cpu_seconds_ratio=round(cpu_ratios[OURS].ratio, 3), unbounded_ratio=round(ratios[UNBOUNDED].ratio, 3),
        floor=round(floors[OURS], 3), memory_ratio=round(memory_ratios[OURS], 4), memory_target=MEMORY_TARGET,
        one_way_ratio=round(ratios[ONE_WAY].ratio, 3), one_way_met=met[ONE_WAY],
        one_way_cpu_seconds_ratio=round(cpu_ratios[ONE_WAY].ratio, 3), one_way_floor=round(floors[ONE_WAY], 3),
        one_way_memory_ratio=round(memory_ratios[ONE_WAY], 4),
        seconds={name: round(statistics.median(times), 4) for name, times in seconds.items()},
        product_shares={name: round(share, 3) for name, share in shares.items()},
        temporary_bytes=temporary_bytes, largest_difference=difference,
    )


if __name__ == "__main__":
    run_benchmark(ContrastiveBenchmarkConfig, benchmark)
