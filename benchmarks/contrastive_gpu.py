"""Time and memory of the symmetric loss with its gradient on one Hopper GPU: the Mosaic kernels beside XLA, bfloat16.

    python -m benchmarks.contrastive_gpu

What one device does of a larger batch: log-sum-exps of its b rows over the N gathered keys and of all N columns over
its rows, its b positive logits, and the gradients of queries, positives and keys. The scores are bounded, as they are
in training.

  forward   our sums beside XLA's plain product of the same operands, Q K^T to bfloat16: the ratio of the rates
  loss      loss and gradient beside the materialised form, whose [b, N] float32 scores are XLA's to keep or fuse, and
            beside our blocked form for any back end: the ratio of the times, and of what XLA plans beside arguments and
            results. Ours does 8 b N D multiply-adds times 2 (it recomputes the scores), the materialised form 6.

All take turns, --calls calls in a row each; a ratio is the median over the repetitions. Inf-CL's Triton kernel is not
among them: it needs a PyTorch with CUDA beside JAX, and has no installer of its own.

Where there is no Hopper GPU it says so and ends with status 1. It has not been run on one.
"""

import dataclasses
import statistics
import time

from benchmarks.contrastive_cpu import largest_difference
from benchmarks.peer import paired_ratio, print_result, run_benchmark
from flags import flag

FORWARD_TARGET, TARGET, MEMORY_TARGET = 0.95, 0.85, 1 / 20
SUMS, PRODUCT = "sums", "plain product"
OURS, BLOCKED, MATERIALISED = "hopper", "xla, blocked", "materialised"


@dataclasses.dataclass(frozen=True)
class ContrastiveBenchmarkConfig:
    rows: int = flag(8192, "queries, b")
    columns: int = flag(65536, "keys, N")
    width: int = flag(768, "embedding width, D")
    scale: float = flag(20.0, "logits are scale * cosine")
    calls: int = flag(10, "calls in a row that are timed together, so that launching them costs nothing")
    repeats: int = flag(9, "repetitions that count")
    seed: int = flag(0, "seed of the embeddings")


def compile_forms(config: ContrastiveBenchmarkConfig, operands) -> dict:
    """{name: compiled (queries, positives, keys) -> anything}; those of the loss return (loss, gradients)."""
    import jax
    import jax.numpy as jnp

    from kernels.contrastive.api import similarity_logsumexp
    from training.losses import UNIT_NORM_PRODUCT

    def plain_product(queries, keys):
        return jnp.matmul(queries, keys.T)

    def materialised(queries, keys):
        scores = config.scale * jnp.matmul(queries, keys.T, preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(scores, axis=1), jax.nn.logsumexp(scores, axis=0)

    def ours(implementation):
        def logsumexps(queries, keys):
            return similarity_logsumexp(queries, keys, config.scale, bound=UNIT_NORM_PRODUCT * config.scale,
                                        implementation=implementation)

        return logsumexps

    def loss_and_gradient(logsumexps):
        def loss(queries, positives, keys):
            row_lse, column_lse = logsumexps(queries, keys)
            positive_logits = config.scale * jnp.sum(
                queries.astype(jnp.float32) * positives.astype(jnp.float32), axis=1)
            return jnp.mean(row_lse) + jnp.mean(column_lse) - 2 * jnp.mean(positive_logits)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))

    def compiled(function):
        return jax.jit(function).lower(*operands).compile()

    forward = {SUMS: ours("hopper"), PRODUCT: plain_product}
    losses = {OURS: ours("hopper"), BLOCKED: ours("xla"), MATERIALISED: materialised}
    return {name: compiled(lambda queries, positives, keys, function=function: function(queries, keys))
            for name, function in forward.items()} | {
        name: compiled(loss_and_gradient(function)) for name, function in losses.items()}


def benchmark(config: ContrastiveBenchmarkConfig) -> None:
    if config.columns < config.rows:
        raise ValueError(f"--columns={config.columns} is below --rows={config.rows}: each query's positive is a key")
    import jax
    import jax.numpy as jnp

    from kernels.implementation import HOPPER

    device = jax.devices()[0]
    if not HOPPER.search(device.device_kind):
        raise ValueError(f"no Hopper GPU: the first device is {device.device_kind!r}. On one (H100, H200), install "
                         "jax[cuda13] and run this again")
    print(f"symmetric loss, {config.rows} x {config.columns} x {config.width} bfloat16, on {device.device_kind}, "
          f"jax {jax.__version__}\n{device.client.platform_version}", flush=True)

    def unit(key, size):
        vectors = jax.random.normal(key, (size, config.width))
        return (vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)).astype(jnp.bfloat16)

    queries, keys = [unit(key, size) for key, size in zip(
        jax.random.split(jax.random.key(config.seed)), (config.rows, config.columns))]
    operands = queries, keys[:config.rows], keys
    forms = compile_forms(config, operands)
    results = {name: jax.block_until_ready(form(*operands)) for name, form in forms.items()}
    differences = {name: largest_difference(*jax.tree.map(lambda array: array.astype(jnp.float32),
                                                          (results[name], results[MATERIALISED])))
                   for name in (OURS, BLOCKED)}
    del results
    seconds = {name: [] for name in forms}
    for _ in range(config.repeats):
        for name, form in forms.items():
            begin = time.perf_counter()
            for _ in range(config.calls):
                result = form(*operands)
            jax.block_until_ready(result)
            seconds[name].append((time.perf_counter() - begin) / config.calls)
    report(config, seconds, {name: form.memory_analysis().temp_size_in_bytes for name, form in forms.items()},
           differences)


def report(config: ContrastiveBenchmarkConfig, seconds: dict[str, list[float]], temporary_bytes: dict[str, int],
           differences: dict[str, float]) -> None:
    product_flops = 2 * config.rows * config.columns * config.width
    for name, times in seconds.items():
        products, median = {SUMS: 1, PRODUCT: 1, MATERIALISED: 3}.get(name, 4), statistics.median(times)
        print(f"{name:14s} {1e3 * median:8.3f} ms ({1e3 * min(times):.3f} to {1e3 * max(times):.3f}), "
              f"{products} products at {products * product_flops / median / 1e12:6.1f} TFLOP/s, "
              f"temporary memory {temporary_bytes[name] / 2**20:8.1f} MiB")
    forward = paired_ratio(seconds[PRODUCT], seconds[SUMS])
    ratio, blocked = (paired_ratio(seconds[name], seconds[MATERIALISED]) for name in (OURS, BLOCKED))
    memory_ratio = temporary_bytes[OURS] / temporary_bytes[MATERIALISED]
    print(f"forward, rate of ours / plain product: {forward.ratio:.3f} "
          f"({forward.lowest:.3f} to {forward.highest:.3f})\n"
          f"loss and gradient, time of ours / materialised: {ratio.ratio:.3f} "
          f"({ratio.lowest:.3f} to {ratio.highest:.3f}); memory: {memory_ratio:.4f}; "
          f"largest relative differences of a result: {differences}")
    print_result(
        "contrastive_gpu", ratio.ratio, TARGET,
        ratio.ratio <= TARGET and forward.ratio >= FORWARD_TARGET and memory_ratio <= MEMORY_TARGET,
        forward_ratio=round(forward.ratio, 3), forward_target=FORWARD_TARGET, memory_ratio=round(memory_ratio, 4),
        memory_target=MEMORY_TARGET, blocked_ratio=round(blocked.ratio, 3),
        seconds={name: round(statistics.median(times), 6) for name, times in seconds.items()},
        temporary_bytes=temporary_bytes, largest_differences=differences,
    )


if __name__ == "__main__":
    run_benchmark(ContrastiveBenchmarkConfig, benchmark)
