"""Pairs a second of training beside SentenceTransformerTrainer: same weights, pairs, batch size and threads.

    python -m benchmarks.train_vs_sentence_transformers --data_dir=DIR [--peer_python=PYTHON]

Both train the real all-MiniLM-L6-v2 on pairs drawn from real training files (benchmarks/texts.py), truncated at 128
tokens, with the symmetric in-batch loss, dropout 0.1, AdamW and warm-up, in float32 and in bfloat16. Ours runs the
steps of `main.py train`; the peer is its own trainer, held between blocks. After a warm-up the four take turns, a block
of --seconds each; a ratio is the median over the repetitions.

In bfloat16 the peer runs PyTorch's autocast; ours is its faster dtype.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from typing import Literal

from benchmarks.peers.peer import (
    PeerBenchmarkConfig,
    WorkerProcess,
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
from flags import flag, with_values

FLOAT32_TARGET, BFLOAT16_TARGET = 3.0, 1.5


@dataclasses.dataclass(frozen=True)
class TrainBenchmarkConfig(PeerBenchmarkConfig):
    model: str = flag("", "folder of a sentence-transformers model; empty: the real all-MiniLM-L6-v2")
    pairs: int = flag(8192, "pairs drawn, an equal share from each file", minimum=1)
    batch_size: int = flag(64, "pairs a step", minimum=1)
    max_length: int = flag(128, "tokens of a text, special tokens included", minimum=3)
    mixture: Literal["example", "dataset"] = flag("example", "draw each pair, or each whole batch, from one file")
    packing_blocks: int = flag(1, "ours: parts that a batch is packed in", minimum=1)
    row_length: int = flag(0, "ours: tokens of a packed row; 0: the default of main.py train", minimum=0)
    warmup_seconds: float = flag(30.0, "length of the first block of each, which is not counted", minimum=0)
    seconds: float = flag(30.0, "length of a block, in whole steps", above=0)
    repeats: int = flag(5, "blocks of each that count", minimum=1)


class OurTrainer:
    """The steps of `main.py train`, a block of seconds at a time."""

    def __init__(self, config, data_dir: pathlib.Path, workdir: pathlib.Path, dtype: str, encode_blocks: int = 0):
        from sharding.mesh import make_mesh  # imports JAX
        from training.feed import Feed
        from training.settings import TrainConfig
        from training.setup import set_up

        train_config = with_values(
            TrainConfig(), data_dir=str(data_dir), workdir=str(workdir), init=str(config.model), dtype=dtype,
            seed=config.seed,
            global_batch_size=config.batch_size, max_length=config.max_length, row_length=config.row_length,
            packing_blocks=config.packing_blocks, encode_blocks=encode_blocks, mixture=config.mixture,
        )
        mesh = make_mesh()
        self.run, self.state, _ = set_up(train_config, mesh)
        self.batches = iter(Feed(self.run.loader, mesh))
        self.compiled_shapes = set()

    def ask(self, seconds: float) -> dict:
        """Answers as benchmarks/peers/train.py does. A block in which a new shape was compiled does not count."""
        while True:
            shapes_before = len(self.compiled_shapes)
            answer = self._block(seconds)
            if len(self.compiled_shapes) == shapes_before:
                return answer

    def _block(self, seconds: float) -> dict:
        import jax

        totals = dict.fromkeys(("pairs", "real_tokens", "padded_tokens"), 0)
        begin, previous = time.perf_counter(), None
        while time.perf_counter() - begin < seconds:
            fed = next(self.batches)
            self.compiled_shapes.add(fed.batch.packed.tokens.shape)
            self.state, metrics = self.run.train_step(fed.host.texts_per_example)(self.state, fed.batch)
            jax.block_until_ready(previous)
            previous = metrics
            totals["pairs"] += self.run.config.global_batch_size
            totals["real_tokens"] += fed.host.statistics.real_tokens
            totals["padded_tokens"] += fed.host.statistics.row_tokens
        jax.block_until_ready(self.state)
        return totals | {"seconds": time.perf_counter() - begin}


def benchmark(config: TrainBenchmarkConfig) -> None:
    blocks = run_side_by_side(
        config, ours={f"ours {dtype}": {"dtype": dtype} for dtype in ("float32", "bfloat16")},
        peers={"peer float32": {"bf16": False}, "peer bf16 autocast": {"bf16": True}},
    )
    report(blocks)


def run_side_by_side(
    config: TrainBenchmarkConfig, ours: dict[str, dict], peers: dict[str, dict]
) -> dict[str, list[dict]]:
    """The counted blocks of each trainer: {name: settings of OurTrainer} and {name: arguments of peers/train.py}."""
    use_cpu(config.threads)
    python = peer_python(config.peer_python)
    config = dataclasses.replace(config, model=config.model or str(peer_model_folder(python)))
    pairs = draw_pairs(read_training_pairs(config.data_dir, SPEED_FILES), config.pairs, config.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data_dir = prepare(pairs, config.model, folder)
        peer_pairs = folder / "pairs.json"
        peer_pairs.write_text(json.dumps({"all": mixed(pairs, config.seed)} if config.mixture == "example" else pairs))
        arguments = {name: getattr(config, name) for name in ("model", "threads", "max_length", "batch_size", "seed")}
        arguments |= {"pairs": str(peer_pairs)}
        with peer_workers(python, "train.py", {name: arguments | more for name, more in peers.items()}) as workers:
            versions = next(iter(workers.values())).ready["versions"]
            print(f"training, batches of {config.batch_size} pairs of {', '.join(SPEED_FILES)} "
                  f"({config.mixture} mixture), at most {config.max_length} tokens a text\n"
                  f"{describe_machine(config.threads, versions)}", flush=True)
            trainers = {name: OurTrainer(config, data_dir, folder / name, **more) for name, more in ours.items()}
            return take_turns(config, trainers | workers)


def take_turns(config: TrainBenchmarkConfig, trainers: dict[str, OurTrainer | WorkerProcess]) -> dict[str, list[dict]]:
    """Blocks of each trainer, interleaved, after a warm-up of each."""
    for trainer in trainers.values():
        trainer.ask(seconds=config.warmup_seconds)
    blocks = {name: [] for name in trainers}
    for repeat in range(config.repeats):
        for name, trainer in trainers.items():
            blocks[name].append(trainer.ask(seconds=config.seconds))
        rates = ", ".join(f"{name} {pairs_per_second(done[-1]):.2f}" for name, done in blocks.items())
        print(f"block {repeat + 1}, pairs/s: {rates}", flush=True)
    return blocks


def pairs_per_second(block: dict) -> float:
    return block["pairs"] / block["seconds"]


def report(blocks: dict[str, list[dict]]) -> None:
    rates = {name: [pairs_per_second(block) for block in done] for name, done in blocks.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, done in blocks.items():
        real, padded, pairs = (sum(block[key] for block in done) for key in ("real_tokens", "padded_tokens", "pairs"))
        print(f"{name:18s}  {medians[name]:7.2f} pairs/s   {real / pairs:6.1f} real tokens a pair, "
              f"{real / padded:.0%} of the tokens computed")
    fastest = max(("ours float32", "ours bfloat16"), key=medians.get)
    float32 = paired_ratio(rates["ours float32"], rates["peer float32"])
    bfloat16 = paired_ratio(rates[fastest], rates["peer bf16 autocast"])
    for text, ratio in (("float32", float32), (f"{fastest} / peer bf16 autocast", bfloat16)):
        print(f"ratio, {text}: {ratio.ratio:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})")
    print_result(
        "train_vs_sentence_transformers", float32.ratio, FLOAT32_TARGET,
        float32.ratio >= FLOAT32_TARGET and bfloat16.ratio >= BFLOAT16_TARGET,
        bfloat16_ratio=round(bfloat16.ratio, 3), bfloat16_target=BFLOAT16_TARGET,
        pairs_per_second={name: round(value, 2) for name, value in medians.items()},
    )


if __name__ == "__main__":
    run_benchmark(TrainBenchmarkConfig, benchmark)
