"""What gradient caching costs in time: a step in parts against the whole step, ours and sentence-transformers'.

    python -m benchmarks.grad_cache --data_dir=DIR [--peer_python=PYTHON]

All train the real all-MiniLM-L6-v2 on the same real pairs with the symmetric in-batch loss, truncated at 128 tokens,
in float32: ours whole and with `--encode_blocks=1`, the peer with MultipleNegativesSymmetricRankingLoss and its Cached
form, in parts of as many pairs. After a warm-up the four take turns, a block of --seconds each; the ratio is the median
over the repetitions of (time in parts) / (time whole). The floor is 4/3: forward twice, backward once.
"""

import dataclasses
import statistics

from benchmarks.peers.peer import paired_ratio, print_result, run_benchmark
from benchmarks.train_vs_sentence_transformers import TrainBenchmarkConfig, pairs_per_second, run_side_by_side
from flags import flag

TARGET = 1.4


@dataclasses.dataclass(frozen=True)
class GradCacheBenchmarkConfig(TrainBenchmarkConfig):
    batch_size: int = flag(128, "pairs a step; with 256 the whole step of the peer takes more than 24 GiB", minimum=1)
    packing_blocks: int = flag(4, "parts of a step", minimum=1)
    warmup_seconds: float = flag(10.0, "length of the first block of each, which is not counted", minimum=0)
    seconds: float = flag(20.0, "length of a block, in whole steps", above=0)


def benchmark(config: GradCacheBenchmarkConfig) -> None:
    blocks = run_side_by_side(
        config, ours={"ours whole": {"dtype": "float32"}, "ours in parts": {"dtype": "float32", "encode_blocks": 1}},
        peers={"peer whole": {"bf16": False},
               "peer in parts": {"bf16": False, "mini_batch_size": config.batch_size // config.packing_blocks}},
    )
    rates = {name: [pairs_per_second(block) for block in done] for name, done in blocks.items()}
    for name, values in rates.items():
        print(f"{name:14s}  {statistics.median(values):7.2f} pairs/s")
    ours, peer = (paired_ratio(rates[f"{side} whole"], rates[f"{side} in parts"]) for side in ("ours", "peer"))
    for side, ratio in (("ours", ours), ("peer", peer)):
        print(f"time in parts / time whole, {side}: {ratio.ratio:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})")
    print_result("grad_cache", ours.ratio, TARGET, ours.ratio <= TARGET, peer_ratio=round(peer.ratio, 3))


if __name__ == "__main__":
    run_benchmark(GradCacheBenchmarkConfig, benchmark)
