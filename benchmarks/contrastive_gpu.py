"""Time and memory of the symmetric loss with its gradient on one Hopper GPU: the Mosaic kernels, XLA and Inf-CL.

    python -m benchmarks.contrastive_gpu

It measures one device's part of a larger batch: log-sum-exps of its b rows over the N gathered keys and of all N
columns over its rows, its b positive logits, and the gradients of queries, positives and keys. The scores are bounded,
as in training.

  forward   our sums beside XLA's plain product of the same operands, Q K^T to bfloat16: the ratio of the rates
  loss      loss and gradient beside the materialised form, whose [b, N] float32 scores XLA may keep or fuse, and beside
            our blocked form for any back end: the ratios of the times, and of the memory that XLA plans beside
            arguments and results. Ours does 8 b N D FLOPs (it recomputes the scores), the materialised form 6 b N D.

  Inf-CL    our loss and gradient beside those of its Triton kernels (benchmarks/peers/inf_cl.py, in an environment of
            its own): the ratio of the times, and of the memory. Its part of the same batch is its b queries over the N
            keys and its b keys over N queries, in TF32: 20 b N D FLOPs. As a check, its loss and the norms of its
            gradients are compared with those of our blocked form of these two one-way losses.

All take turns, --calls calls in a row each; a ratio is the median over the repetitions. If Inf-CL cannot be run, the
others are still measured, the last line says why, and "met" is false.

Without a Hopper GPU the benchmark ends with status 1. It has not been run on one yet.
"""

import contextlib
import dataclasses
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from benchmarks.contrastive_cpu import largest_difference
from benchmarks.harness import paired_ratio, print_result, run_benchmark
from benchmarks.peers.peer import PEER_TORCH, peer_python, peer_workers
from benchmarks.processes import WorkerProcess
from flags import flag

FORWARD_TARGET, TARGET, MEMORY_TARGET, INF_CL_TARGET = 0.95, 0.85, 1 / 20, 0.25
INF_CL_ENVIRONMENT = ".venv-inf-cl", (PEER_TORCH, ["inf-cl==1.2.1"])
SUMS, PRODUCT = "sums", "plain product"
OURS, BLOCKED, MATERIALISED, INF_CL = "hopper", "xla, blocked", "materialised", "Inf-CL"
PRODUCTS = {SUMS: 1, PRODUCT: 1, OURS: 4, BLOCKED: 4, MATERIALISED: 3, INF_CL: 10}


@dataclasses.dataclass(frozen=True)
class ContrastiveBenchmarkConfig:
    rows: int = flag(8192, "queries, b", minimum=1)
    columns: int = flag(65536, "keys, N", minimum=1)
    width: int = flag(768, "embedding width, D", minimum=1)
    scale: float = flag(20.0, "logits are scale * cosine", above=0)
    calls: int = flag(10, "calls that are timed together, so that the launch of a call does not count", minimum=1)
    repeats: int = flag(9, "repetitions that count", minimum=1)
    peer_python: str = flag("", "Python with a CUDA torch and inf-cl; empty: .venv-inf-cl, created on first use")
    seed: int = flag(0, "seed of the embeddings", minimum=0)


def compile_forms(config: ContrastiveBenchmarkConfig, operands: Any) -> dict:
    """{name: compiled (queries, positives, keys) -> anything}; those of the loss return (loss, gradients)."""
    import jax
    import jax.numpy as jnp

    from kernels.contrastive.api import similarity_logsumexp
    from kernels.products import UNIT_NORM_PRODUCT

    def plain_product(queries, keys):
        return jnp.matmul(queries, keys.T)

    def materialised(queries, keys):
        scores = config.scale * jnp.matmul(queries, keys.T, preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(scores, axis=1), jax.nn.logsumexp(scores, axis=0)

    def ours(implementation):
        def logsumexps(queries, keys):
            return similarity_logsumexp(queries, keys, config.scale, bound=UNIT_NORM_PRODUCT * config.scale,
                                        implementation=implementation)[:2]

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
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer's process needs memory of the GPU too
    import jax
    import jax.numpy as jnp

    from kernels.implementation import HOPPER

    device = jax.devices()[0]
    if not HOPPER.search(device.device_kind):
        raise ValueError(f"no Hopper GPU: the first device is {device.device_kind!r}. On one (H100, H200), install "
                         "jax[cuda13] and run this again")
    print(f"symmetric loss, {config.rows} x {config.columns} x {config.width} bfloat16, on {device.device_kind}, "
          f"jax {jax.__version__}\n{device.client.platform_version}", flush=True)

    def unit(key):
        vectors = jax.random.normal(key, (config.columns, config.width))
        return (vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)).astype(jnp.bfloat16)

    all_queries, keys = [unit(key) for key in jax.random.split(jax.random.key(config.seed))]
    operands = all_queries[:config.rows], keys[:config.rows], keys
    forms = compile_forms(config, operands)
    results = {name: jax.block_until_ready(form(*operands)) for name, form in forms.items()}
    differences = {name: largest_difference(*jax.tree.map(lambda array: array.astype(jnp.float32),
                                                          (results[name], results[MATERIALISED])))
                   for name in (OURS, BLOCKED)}
    del results
    temporary_bytes = {name: form.memory_analysis().temp_size_in_bytes for name, form in forms.items()}
    seconds = {name: [] for name in forms}
    reason = ""
    with contextlib.ExitStack() as stack:
        try:
            peer, answer = start_inf_cl(stack, config, all_queries, keys)
        except (ValueError, OSError) as error:
            reason = f"Inf-CL could not be run: {error}"
            print(reason, flush=True)
        else:
            temporary_bytes[INF_CL] = answer["temporary_bytes"]
            differences[INF_CL] = largest_difference(
                [answer["loss"], *answer["gradient_norms"]], inf_cl_loss_and_norms(config, all_queries, keys))
            seconds[INF_CL] = []
        for _ in range(config.repeats):
            for name, form in forms.items():
                begin = time.perf_counter()
                for _ in range(config.calls):
                    result = form(*operands)
                jax.block_until_ready(result)
                seconds[name].append((time.perf_counter() - begin) / config.calls)
            if not reason:
                seconds[INF_CL].append(peer.ask(order="time", calls=config.calls)["seconds"] / config.calls)
    report(config, seconds, temporary_bytes, differences, reason)


def start_inf_cl(
    stack: contextlib.ExitStack, config: ContrastiveBenchmarkConfig, all_queries: Any, keys: Any
) -> tuple[WorkerProcess, dict]:
    """The peer's process, which ends with the stack, and its first result."""
    import numpy as np

    python = peer_python(config.peer_python, *INF_CL_ENVIRONMENT)
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    arguments = {"rows": config.rows, "scale": config.scale}
    for name, array in (("queries", all_queries), ("keys", keys)):
        arguments[name] = str(folder / f"{name}.npy")
        np.save(arguments[name], np.asarray(array).view(np.int16))
    peer = stack.enter_context(peer_workers(python, "inf_cl.py", {INF_CL: arguments}))[INF_CL]
    print(", ".join(f"{name} {version}" for name, version in peer.ready["versions"].items()), flush=True)
    return peer, peer.ask(order="result")


def inf_cl_loss_and_norms(config: ContrastiveBenchmarkConfig, all_queries: Any, keys: Any) -> list:
    """Loss, and norms of the gradients, of what benchmarks/peers/inf_cl.py computes, by our blocked form."""
    import jax
    import jax.numpy as jnp

    from kernels.contrastive.api import similarity_logsumexp
    from kernels.products import UNIT_NORM_PRODUCT

    def one_way(own, others):
        lse, _, _ = similarity_logsumexp(own, others, config.scale, columns=False,
                                      bound=UNIT_NORM_PRODUCT * config.scale, implementation="xla")
        products = own.astype(jnp.float32) * others[:config.rows].astype(jnp.float32)
        return jnp.mean(lse - config.scale * jnp.sum(products, axis=1))

    @jax.jit
    def loss_and_norms(*operands):
        loss, gradients = jax.value_and_grad(
            lambda queries, keys, own_keys, all_queries: one_way(queries, keys) + one_way(own_keys, all_queries),
            argnums=(0, 1, 2, 3))(*operands)
        return [loss, *[jnp.linalg.norm(gradient.astype(jnp.float32)) for gradient in gradients]]

    return loss_and_norms(all_queries[:config.rows], keys, keys[:config.rows], all_queries)


def report(config: ContrastiveBenchmarkConfig, seconds: dict[str, list[float]], temporary_bytes: dict[str, int],
           differences: dict[str, float], reason: str) -> None:
    """`reason`: why Inf-CL was not run; empty if it was."""
    product_flops = 2 * config.rows * config.columns * config.width
    for name, times in seconds.items():
        products, median = PRODUCTS[name], statistics.median(times)
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
    met = ratio.ratio <= TARGET and forward.ratio >= FORWARD_TARGET and memory_ratio <= MEMORY_TARGET
    if reason:
        more = {"reason": reason}
    else:
        inf_cl = paired_ratio(seconds[OURS], seconds[INF_CL])
        more = {"inf_cl_ratio": round(inf_cl.ratio, 3),
                "inf_cl_memory_ratio": round(temporary_bytes[OURS] / temporary_bytes[INF_CL], 4)}
        print(f"loss and gradient, time of ours / Inf-CL: {inf_cl.ratio:.3f} "
              f"({inf_cl.lowest:.3f} to {inf_cl.highest:.3f}); memory: {more['inf_cl_memory_ratio']}")
        met = met and inf_cl.ratio <= INF_CL_TARGET
    print_result(
        "contrastive_gpu", ratio.ratio, TARGET, met and not reason, forward_ratio=round(forward.ratio, 3),
        forward_target=FORWARD_TARGET, memory_ratio=round(memory_ratio, 4), memory_target=MEMORY_TARGET,
        blocked_ratio=round(blocked.ratio, 3), inf_cl_target=INF_CL_TARGET, **more,
        seconds={name: round(statistics.median(times), 6) for name, times in seconds.items()},
        temporary_bytes=temporary_bytes, largest_differences=differences,
    )


if __name__ == "__main__":
    run_benchmark(ContrastiveBenchmarkConfig, benchmark)
