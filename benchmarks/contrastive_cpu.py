"""Time and memory of the symmetric loss with its gradient on the CPU: similarity_logsumexp beside plain jnp, jitted.

    python -m benchmarks.contrastive_cpu

Both compute, in float32, what one device does of a larger batch: the log-sum-exps of its b rows over the N gathered
keys and of all N columns over its rows, its b positive logits, and the gradients of queries, positives and keys. Plain
jnp holds the [b, N] scores. A third form of ours has no bound on the scores, and so runs with a running maximum. All
take turns; a ratio is the median over the repetitions. The memory is what XLA plans beside arguments and results. CPU
seconds, of all threads, are printed too: other work on the machine disturbs them less.

One product [b, N] is timed beside them: plain jnp takes three; ours four, as it computes the scores again for the
gradient. Four and nothing else are its floor.

Plain jnp needs its scores anew in each call. Where freed memory is kept, as in main.py, that costs it nothing; with
--nokeep_freed_memory the system zeroes their pages each time, as in a Python program that does not ask for anything.
"""

import dataclasses
import statistics
import time

from benchmarks.peer import describe_machine, paired_ratio, print_result, run_benchmark, use_cpu
from flags import flag

TARGET, MEMORY_TARGET = 0.9, 1 / 20
OURS, UNBOUNDED, NAIVE, PRODUCT = "ours", "ours, unbounded", "plain jnp", "one product"
PRODUCTS = {OURS: 4, UNBOUNDED: 4, NAIVE: 3, PRODUCT: 1}


@dataclasses.dataclass(frozen=True)
class ContrastiveBenchmarkConfig:
    rows: int = flag(4096, "queries, b")
    keys: int = flag(16384, "keys, N")
    width: int = flag(384, "embedding width, D")
    scale: float = flag(20.0, "logits are scale * cosine")
    repeats: int = flag(7, "repetitions that count")
    threads: int = flag(2, "cores and threads")
    keep_freed_memory: bool = flag(True, "keep freed memory for the next call, as main.py does")
    seed: int = flag(0, "seed of the embeddings")


def compile_forms(config: ContrastiveBenchmarkConfig, operands) -> dict:
    """{name: compiled (queries, positives, keys) -> (loss, gradients)}."""
    import jax
    import jax.numpy as jnp

    from kernels.contrastive.api import similarity_logsumexp
    from training.losses import UNIT_NORM_PRODUCT

    bound = UNIT_NORM_PRODUCT * config.scale

    def naive_logsumexps(queries, keys):
        scores = config.scale * jnp.matmul(queries, keys.T, precision="highest")
        return jax.nn.logsumexp(scores, axis=1), jax.nn.logsumexp(scores, axis=0)

    def our_logsumexps(queries, keys, bound):
        return similarity_logsumexp(queries, keys, config.scale, bound=bound, implementation="xla")

    def compiled(logsumexps, **options):
        def loss(queries, positives, keys):
            row_lse, column_lse = logsumexps(queries, keys, **options)
            positive_logits = config.scale * jnp.sum(queries * positives, axis=1)
            return jnp.mean(row_lse) + jnp.mean(column_lse) - 2 * jnp.mean(positive_logits)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*operands).compile()

    product = jax.jit(lambda queries, positives, keys: jnp.matmul(queries, keys.T, precision="highest"))
    return {OURS: compiled(our_logsumexps, bound=bound), UNBOUNDED: compiled(our_logsumexps, bound=None),
            NAIVE: compiled(naive_logsumexps), PRODUCT: product.lower(*operands).compile()}


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
          f"{describe_machine(config.threads, {'jax': jax.__version__})}", flush=True)
    forms = compile_forms(config, operands)
    results = {name: jax.block_until_ready(form(*operands)) for name, form in forms.items()}
    difference = max(largest_difference(results[name], results[NAIVE]) for name in (OURS, UNBOUNDED))
    seconds, cpu_seconds = {name: [] for name in forms}, {name: [] for name in forms}
    for repeat in range(config.repeats):
        for name, form in forms.items():
            begin, cpu_begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(form(*operands))
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - cpu_begin)
        print(f"repetition {repeat + 1}: "
              + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()), flush=True)
    temporary_bytes = {name: form.memory_analysis().temp_size_in_bytes for name, form in forms.items()}
    report(config, seconds, cpu_seconds, temporary_bytes, difference)


def largest_difference(ours, theirs) -> float:
    """Of loss and gradients, relative to the largest element of each."""
    import jax
    import numpy as np

    return max(float(np.abs(a - b).max() / np.abs(b).max())
               for a, b in zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(jax.device_get(theirs))))


def report(config: ContrastiveBenchmarkConfig, seconds: dict[str, list[float]], cpu_seconds: dict[str, list[float]],
           temporary_bytes: dict[str, int], difference: float) -> None:
    product_flops = 2 * config.rows * config.keys * config.width
    for name, times in seconds.items():
        products, median = PRODUCTS[name], statistics.median(times)
        cpu_median = statistics.median(cpu_seconds[name])
        print(f"{name:16s} {median:6.3f} s ({cpu_median:.3f} CPU s), {products} products at "
              f"{products * product_flops / median / 1e9:6.1f} GFLOP/s, "
              f"temporary memory {temporary_bytes[name] / 2**20:7.1f} MiB")
    ratio, unbounded = (paired_ratio(seconds[name], seconds[NAIVE]) for name in (OURS, UNBOUNDED))
    cpu_ratio = paired_ratio(cpu_seconds[OURS], cpu_seconds[NAIVE])
    floor = PRODUCTS[OURS] * paired_ratio(seconds[PRODUCT], seconds[NAIVE]).ratio
    memory_ratio = temporary_bytes[OURS] / temporary_bytes[NAIVE]
    print(f"time, ours / plain jnp: {ratio.ratio:.3f} ({ratio.lowest:.3f} to {ratio.highest:.3f}); memory: "
          f"{memory_ratio:.4f}; floor: {floor:.3f}; largest relative difference of a result: "
          f"{difference:.1e}")
    print_result(
        "contrastive_cpu", ratio.ratio, TARGET, ratio.ratio <= TARGET and memory_ratio <= MEMORY_TARGET,
        cpu_seconds_ratio=round(cpu_ratio.ratio, 3), unbounded_ratio=round(unbounded.ratio, 3), floor=round(floor, 3),
        memory_ratio=round(memory_ratio, 4), memory_target=MEMORY_TARGET,
        seconds={name: round(statistics.median(times), 4) for name, times in seconds.items()},
        temporary_bytes=temporary_bytes, largest_difference=difference,
    )


if __name__ == "__main__":
    run_benchmark(ContrastiveBenchmarkConfig, benchmark)
