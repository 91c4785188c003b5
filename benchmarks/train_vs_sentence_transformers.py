"""Pairs per second of training beside SentenceTransformerTrainer: same weights, pairs, batch size and threads.

    python -m benchmarks.train_vs_sentence_transformers --data_dir=DIR [--peer_python=PYTHON]

Both train the real all-MiniLM-L6-v2 on pairs drawn from real training files (benchmarks/texts.py), truncated at 128
tokens, with the symmetric in-batch loss, dropout 0.1, AdamW and warm-up, in float32 and, if the CPU has instructions
for it, in bfloat16. Ours runs the steps of `main.py train`; the peer is sentence-transformers' trainer, paused between
blocks. After a warm-up all take turns, a block of --seconds each; a ratio is the median over the repetitions. In
bfloat16 the peer runs PyTorch's autocast; the ratio to it takes the faster of our two dtypes.

Each repetition also measures how fast the machine multiplies matrices (benchmarks/machine.py), and each side's share of
that. Target: no ratio below 1, and a share of 0.8 in float32. "Executed" counts all matrix products in our compiled
step, padding included.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from typing import Literal, NamedTuple

from benchmarks.harness import DataBenchmarkConfig, paired_ratio, print_result, run_benchmark
from benchmarks.machine import (
    SHARE_TARGET,
    ProductRate,
    describe_machine,
    encoder_flops,
    segment_lengths,
    use_cpu,
    without_unsupported,
)
from benchmarks.peers.peer import peer_model_folder, peer_python, peer_workers, product_rates
from benchmarks.processes import WorkerProcess
from benchmarks.texts import SPEED_FILES, draw_pairs, mixed, prepare, read_training_pairs
from flags import flag, with_values
from model.config import EncoderConfig

TARGET = 1.0
OURS, PEER = {"ours float32": "float32", "ours bfloat16": "bfloat16"}, {
    "peer float32": "float32", "peer bf16 autocast": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class TrainBenchmarkConfig(DataBenchmarkConfig):
    model: str = flag("", "folder of a sentence-transformers model; empty: the real all-MiniLM-L6-v2")
    pairs: int = flag(8192, "pairs drawn, an equal share from each file", minimum=1)
    batch_size: int = flag(64, "pairs per step", minimum=1)
    max_length: int = flag(128, "tokens of a text, special tokens included", minimum=3)
    mixture: Literal["example", "dataset"] = flag("example", "draw each pair, or each whole batch, from one file")
    packing_blocks: int = flag(1, "ours: independently packed blocks in a batch", minimum=1)
    row_length: int = flag(0, "ours: tokens of a packed row; 0: the default of main.py train", minimum=0)
    warmup_seconds: float = flag(30.0, "length of the first block of each, which is not counted", minimum=0)
    seconds: float = flag(30.0, "length of a block, in whole steps", above=0)
    repeats: int = flag(5, "blocks of each that count", minimum=1)


class Side(NamedTuple):
    """One trainer: its dtype, and its further settings (of OurTrainer or of peers/train.py)."""

    dtype: str
    settings: dict


class Measured(NamedTuple):
    """Measurements of one trainer, one value per repetition."""

    pairs_per_second: list[float]
    shares: list[float]  # of the machine's product rate in the trainer's dtype, over real tokens
    executed_shares: list[float]  # of ours: with all products that its compiled step executes; empty for the peer
    real_tokens_per_pair: float
    real_share: float  # real tokens over all tokens that are computed


class OurTrainer:
    """The steps of `main.py train`, a block of seconds at a time."""

    def __init__(self, config, data_dir: pathlib.Path, workdir: pathlib.Path, dtype: str, encode_blocks: int = 0):
        from sharding.layout import make_layout  # imports JAX
        from training.checks import read_training_data
        from training.feed import Feed
        from training.settings import TrainConfig
        from training.setup import set_up

        train_config = with_values(
            TrainConfig(), data_dir=str(data_dir), workdir=str(workdir), init=str(config.model), dtype=dtype,
            seed=config.seed,
            global_batch_size=config.batch_size, max_length=config.max_length, row_length=config.row_length,
            packing_blocks=config.packing_blocks, encode_blocks=encode_blocks, mixture=config.mixture,
        )
        layout = make_layout()
        self.run, self.state, _ = set_up(train_config, layout, read_training_data(train_config))
        self.batch_size = config.batch_size
        self.batches = iter(Feed(self.run.loader, layout.mesh))
        self.executed_flops = {}  # {shape of the packed tokens: FLOPs of the step's matrix products}

    def ask(self, seconds: float) -> dict:
        """Answers as benchmarks/peers/train.py does. A block in which a new shape was compiled does not count."""
        while True:
            shapes_before = len(self.executed_flops)
            answer = self._block(seconds)
            if len(self.executed_flops) == shapes_before:
                return answer

    def _block(self, seconds: float) -> dict:
        import jax

        names = ("pairs", "real_tokens", "padded_tokens", "squared_lengths", "executed_flops")
        totals = dict.fromkeys(names, 0)
        begin, previous = time.perf_counter(), None
        while time.perf_counter() - begin < seconds:
            fed = next(self.batches)
            step = self.run.train_step(fed.host.texts_per_example)
            executed_flops = self._executed_flops(step, fed.batch)
            self.state, metrics = step(self.state, fed.batch)
            jax.block_until_ready(previous)
            previous = metrics
            lengths = segment_lengths(fed.host.packed.segments)
            counts = (self.batch_size, lengths.sum(), fed.host.statistics.row_tokens, (lengths**2).sum(),
                      executed_flops)
            totals = {name: total + int(count) for (name, total), count in zip(totals.items(), counts, strict=True)}
        jax.block_until_ready(self.state)
        return totals | {"seconds": time.perf_counter() - begin}

    def _executed_flops(self, step, batch) -> int:
        import jax

        from plan.counts import matrix_flops

        shape = batch.packed.tokens.shape
        if shape not in self.executed_flops:
            self.executed_flops[shape] = matrix_flops(jax.make_jaxpr(step)(self.state, batch).jaxpr)
        return self.executed_flops[shape]


def benchmark(config: TrainBenchmarkConfig) -> None:
    dtypes, left_out = without_unsupported(OURS | PEER)
    ours = {name: Side(dtype, {}) for name, dtype in OURS.items() if name in dtypes}
    peers = {name: Side(dtype, {"bf16": dtype == "bfloat16"}) for name, dtype in PEER.items() if name in dtypes}
    report(run_side_by_side(config, ours, peers, left_out), left_out)


def run_side_by_side(
    config: TrainBenchmarkConfig, ours: dict[str, Side], peers: dict[str, Side], left_out: list[str]
) -> dict[str, Measured]:
    """{name: measurements} of our trainers and the peer's; prints the settings and the machine."""
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
        with peer_workers(python, "train.py", {n: arguments | side.settings for n, side in peers.items()}) as workers:
            versions = next(iter(workers.values())).ready["versions"]
            print(f"training, batches of {config.batch_size} pairs of {', '.join(SPEED_FILES)} "
                  f"({config.mixture} mixture), at most {config.max_length} tokens per text\n"
                  f"{describe_machine(config.threads, versions)}", *[f"left out: {line}" for line in left_out],
                  sep="\n", flush=True)
            trainers = {name: OurTrainer(config, data_dir, folder / name.replace(" ", "-"), side.dtype, **side.settings)
                        for name, side in ours.items()}
            encoder = next(iter(trainers.values())).run.model.encoder
            dtypes = {name: side.dtype for name, side in (ours | peers).items()}
            with product_rates(python, encoder, sorted(set(dtypes.values())), config.threads) as rates:
                blocks, measured_rates = take_turns(config, trainers | workers, rates)
            print(*rates.values(), sep="\n")
    return {name: measure(encoder, done, measured_rates[dtypes[name]]) for name, done in blocks.items()}


def take_turns(
    config: TrainBenchmarkConfig, trainers: dict[str, OurTrainer | WorkerProcess], rates: dict[str, ProductRate]
) -> tuple[dict[str, list[dict]], dict[str, list[float]]]:
    """(blocks of each trainer, the product rate of each dtype), interleaved, after a warm-up of each trainer."""
    for trainer in trainers.values():
        trainer.ask(seconds=config.warmup_seconds)
    blocks, measured_rates = {name: [] for name in trainers}, {dtype: [] for dtype in rates}
    for repeat in range(config.repeats):
        for name, trainer in trainers.items():
            blocks[name].append(trainer.ask(seconds=config.seconds))
        for dtype, rate in rates.items():
            measured_rates[dtype].append(rate.measure())
        shown = ", ".join(f"{name} {done[-1]['pairs'] / done[-1]['seconds']:.2f}" for name, done in blocks.items())
        print(f"block {repeat + 1}, pairs/s: {shown}", flush=True)
    return blocks, measured_rates


def measure(encoder: EncoderConfig, blocks: list[dict], product_rates: list[float]) -> Measured:
    """From one trainer's blocks, and the product rate of each repetition in its dtype."""
    seconds = [block["seconds"] for block in blocks]
    flops = [3 * encoder_flops(encoder, block["real_tokens"], block["squared_lengths"]) for block in blocks]
    executed = [block["executed_flops"] for block in blocks if "executed_flops" in block]
    real, padded, pairs = (sum(block[key] for block in blocks) for key in ("real_tokens", "padded_tokens", "pairs"))
    return Measured(
        [block["pairs"] / block["seconds"] for block in blocks],
        [each / time / rate for each, time, rate in zip(flops, seconds, product_rates, strict=True)],
        [each / time / rate for each, time, rate in zip(executed, seconds, product_rates)],
        real / pairs, real / padded,
    )


def print_measured(measured: dict[str, Measured]) -> None:
    for name, each in measured.items():
        executed = f" ({statistics.median(each.executed_shares):.0%} executed)" if each.executed_shares else ""
        print(f"{name:18s}  {statistics.median(each.pairs_per_second):7.2f} pairs/s   {each.real_tokens_per_pair:6.1f} "
              f"real tokens per pair, {each.real_share:.0%} of the tokens computed; "
              f"{statistics.median(each.shares):.0%} of the product rate{executed}")


def report(measured: dict[str, Measured], left_out: list[str]) -> None:
    print_measured(measured)
    rates = {name: each.pairs_per_second for name, each in measured.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    shares = {name: round(statistics.median(each.shares), 3) for name, each in measured.items()}
    ratios = {"float32": paired_ratio(rates["ours float32"], rates["peer float32"])}
    print(f"ratio, float32: {ratios['float32']}")
    if "peer bf16 autocast" in rates:
        fastest = max((name for name in OURS if name in rates), key=medians.get)
        ratios["bfloat16"] = paired_ratio(rates[fastest], rates["peer bf16 autocast"])
        print(f"ratio, {fastest} / peer bf16 autocast: {ratios['bfloat16']}")
    print_result(
        "train_vs_sentence_transformers", ratios["float32"].ratio, TARGET,
        min(each.ratio for each in ratios.values()) >= TARGET and shares["ours float32"] >= SHARE_TARGET,
        bfloat16_ratio=round(ratios["bfloat16"].ratio, 3) if "bfloat16" in ratios else None,
        product_shares=shares, product_share_target=SHARE_TARGET, left_out=left_out,
        pairs_per_second={name: round(value, 2) for name, value in medians.items()},
    )


if __name__ == "__main__":
    run_benchmark(TrainBenchmarkConfig, benchmark)
