"""The time that gradient caching costs: a step in parts against the whole step, ours and sentence-transformers'.

    python -m benchmarks.grad_cache --data_dir=DIR [--peer_python=PYTHON]

All train the real all-MiniLM-L6-v2 on the same real pairs with the symmetric in-batch loss, truncated at 128 tokens,
in float32: ours whole and with `--encode_blocks=1`, the peer with MultipleNegativesSymmetricRankingLoss and its Cached
form, in parts of as many pairs. After a warm-up the four take turns, a block of --seconds each; the ratio is the median
over the repetitions of (time in parts) / (time whole). At least it is 4/3: forward twice, backward once.

Shares of the machine's product rate count one forward and one backward pass of the real tokens; "executed" counts the
second forward pass too.
"""

import dataclasses

from benchmarks.harness import paired_ratio, print_result, run_benchmark
from benchmarks.train_vs_sentence_transformers import Side, TrainBenchmarkConfig, print_measured, run_side_by_side
from flags import flag

TARGET = 1.4


@dataclasses.dataclass(frozen=True)
class GradCacheBenchmarkConfig(TrainBenchmarkConfig):
    batch_size: int = flag(128, "pairs per step; with 256 the peer's whole step takes more than 24 GiB", minimum=1)
    packing_blocks: int = flag(4, "parts of a step", minimum=1)
    warmup_seconds: float = flag(10.0, "length of the first block of each, which is not counted", minimum=0)
    seconds: float = flag(20.0, "length of a block, in whole steps", above=0)


def benchmark(config: GradCacheBenchmarkConfig) -> None:
    part = {"mini_batch_size": config.batch_size // config.packing_blocks}
    measured = run_side_by_side(
        config,
        ours={"ours whole": Side("float32", {}), "ours in parts": Side("float32", {"encode_blocks": 1})},
        peers={"peer whole": Side("float32", {"bf16": False}),
               "peer in parts": Side("float32", {"bf16": False} | part)},
        left_out=[],
    )
    print_measured(measured)
    rates = {name: each.pairs_per_second for name, each in measured.items()}
    ours, peer = (paired_ratio(rates[f"{side} whole"], rates[f"{side} in parts"]) for side in ("ours", "peer"))
    for side, ratio in (("ours", ours), ("peer", peer)):
        print(f"time in parts / time whole, {side}: {ratio}")
    print_result("grad_cache", ours.ratio, TARGET, ours.ratio <= TARGET, peer_ratio=round(peer.ratio, 3))


if __name__ == "__main__":
    run_benchmark(GradCacheBenchmarkConfig, benchmark)
