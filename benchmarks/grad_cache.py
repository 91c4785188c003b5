"""What gradient caching costs in time: a step in parts against the whole step, ours and sentence-transformers'.

    python -m benchmarks.grad_cache --data_dir=DIR [--peer_python=PYTHON]

All train the real all-MiniLM-L6-v2 on the same real pairs with the symmetric in-batch loss, truncated at 128 tokens,
in float32: ours whole and with `--encode_blocks=1`, the peer with MultipleNegativesSymmetricRankingLoss and its Cached
form, in parts of as many pairs. After a warm-up the four take turns, a block of --seconds each; the ratio is the median
over the repetitions of (time in parts) / (time whole). The floor is 4/3: forward twice, backward once.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile

from benchmarks.peer import (
    describe_machine,
    paired_ratio,
    peer_model_folder,
    peer_python,
    peer_workers,
    print_result,
    run_benchmark,
    use_cpu,
)
from benchmarks.texts import SPEED_FILES, draw_pairs, mixed, prepare, read_training_pairs
from benchmarks.train_vs_sentence_transformers import OurTrainer, TrainBenchmarkConfig, pairs_per_second, take_turns
from flags import flag

TARGET = 1.4


@dataclasses.dataclass(frozen=True)
class GradCacheBenchmarkConfig(TrainBenchmarkConfig):
    batch_size: int = flag(256, "pairs a step")
    packing_blocks: int = flag(4, "parts of a step")
    warmup_seconds: float = flag(10.0, "length of the first block of each, which is not counted")
    seconds: float = flag(20.0, "length of a block, in whole steps")



def benchmark(config: GradCacheBenchmarkConfig) -> None:
    use_cpu(config.threads)
    python = peer_python(config.peer_python)
    config = dataclasses.replace(config, model=config.model or str(peer_model_folder(python)))
    pairs = draw_pairs(read_training_pairs(config.data_dir, SPEED_FILES), config.pairs, config.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data_dir = prepare(pairs, config.model, folder)
        peer_pairs = folder / "pairs.json"
        peer_pairs.write_text(json.dumps({"all": mixed(pairs, config.seed)}))
        arguments = {name: getattr(config, name) for name in ("model", "threads", "max_length", "batch_size", "seed")}
        arguments |= {"pairs": str(peer_pairs), "bf16": False}
        with peer_workers(python, "peer_train.py", {
            "peer whole": arguments,
            "peer in parts": arguments | {"mini_batch_size": config.batch_size // config.packing_blocks},
        }) as peers:
            print(f"batches of {config.batch_size} pairs, in parts of {config.batch_size // config.packing_blocks}\n"
                  f"{describe_machine(config.threads, peers['peer whole'].ready['versions'])}", flush=True)
            trainers = {
                name: OurTrainer(config, data_dir, folder / name, "float32", encode_blocks)
                for name, encode_blocks in (("ours whole", 0), ("ours in parts", 1))
            }
            blocks = take_turns(config, trainers | peers)
    rates = {name: [pairs_per_second(block) for block in done] for name, done in blocks.items()}
    for name, values in rates.items():
        print(f"{name:14s}  {statistics.median(values):7.2f} pairs/s")
    ours, peer = (paired_ratio(rates[f"{side} whole"], rates[f"{side} in parts"]) for side in ("ours", "peer"))
    for side, ratio in (("ours", ours), ("peer", peer)):
        print(f"time in parts / time whole, {side}: {ratio.ratio:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})")
    print_result("grad_cache", ours.ratio, TARGET, ours.ratio <= TARGET, peer_ratio=round(peer.ratio, 3))


if __name__ == "__main__":
    run_benchmark(GradCacheBenchmarkConfig, benchmark)
