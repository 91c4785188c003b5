"""Quality at equal time: the scores after ten minutes of training, beside SentenceTransformerTrainer.

    python -m benchmarks.quality_vs_sentence_transformers --data_dir=DIR [--peer_python=PYTHON]

Both start from the same random weights and train on the same pairs of all files of DIR/train, drawn in proportion to
the files' sizes, with the same batch size, learning rate, clipping and dropout, for --minutes of wall time on the same
cores, one after another. The clock starts with the process: it includes `main.py prepare`, start-up and compilation for
ours, imports and datasets for the peer. The peer runs once in float32 and, if the CPU has instructions for it, once in
bf16 autocast. It schedules its learning rate by the clock. Ours counts steps; a short run beforehand, which does not
count, measures how many steps fit.

Both are scored by the same scorer: STS-B dev Spearman, and MRR@10 on held-out pairs of the same files, whose texts are
not in the training data. Target: better than the peer's better run in both.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Literal, NamedTuple

from benchmarks.harness import DataBenchmarkConfig, DtypeConfig, print_result, run_benchmark
from benchmarks.machine import describe_machine, resolved_dtype, use_cpu, without_unsupported
from benchmarks.peers.peer import peer_model_folder, peer_python, peer_workers
from benchmarks.texts import Pairs, hold_out, prepare, read_training_pairs, run_main
from evaluation.measures.bootstrap import bootstrap_mrr, bootstrap_spearman
from evaluation.tasks.heldout import RetrievalScores, evaluate_pairs
from evaluation.tasks.sts import StsPair, StsScores, evaluate_sts, read_sts
from flags import flag

SAFETY = 0.95  # share of the time left that ours plans to use: its steps are fixed beforehand


@dataclasses.dataclass(frozen=True)
class QualityBenchmarkConfig(DtypeConfig, DataBenchmarkConfig):
    init: str = flag("", "folder whose architecture and tokenizer both use; empty: the real all-MiniLM-L6-v2")
    minutes: float = flag(10.0, "wall time of each run", above=0)
    batch_size: int = flag(64, "pairs per step", minimum=1)
    max_length: int = flag(128, "tokens of a text, special tokens included", minimum=3)
    learning_rate: float = flag(5e-4, "peak learning rate of both", above=0)
    warmup_share: float = flag(0.1, "share of the run in which the learning rate rises", minimum=0, maximum=1)
    dropout: float = flag(0.0, "dropout of both; a run too short to overfit is better without", minimum=0, below=1)
    mixture: Literal["example", "dataset"] = flag("dataset", "ours: one file gives a pair, or a batch as with the peer")
    packing_blocks: int = flag(1, "ours: independently packed blocks in a batch", minimum=1)
    calibration_steps: int = flag(120, "ours: steps of the run that says how many steps fit", minimum=1)
    peer_precisions: tuple[str, ...] = flag(("float32", "bfloat16"), "the peer: one run for each; bfloat16 is left out "
                                            "if the CPU has no instructions for it")
    heldout: int = flag(2000, "held-out pairs, an equal share of each file", minimum=1)


class Scores(NamedTuple):
    sts: StsScores
    retrieval: RetrievalScores


def benchmark(config: QualityBenchmarkConfig) -> None:
    use_cpu(config.threads)
    config = dataclasses.replace(config, dtype=resolved_dtype(config.dtype))
    if not config.peer_precisions or set(config.peer_precisions) - {"float32", "bfloat16"}:
        raise ValueError(f"--peer_precisions={','.join(config.peer_precisions)}: it takes float32, bfloat16 or both")
    precisions, left_out = without_unsupported({f"peer {name}": name for name in config.peer_precisions})
    python = peer_python(config.peer_python)
    training, heldout = hold_out(read_training_pairs(config.data_dir), config.heldout, config.seed)
    sts_pairs = read_sts(pathlib.Path(config.data_dir, "eval", "stsb.tsv"), "dev")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        start = folder / "start"
        write_random_start(config, config.init or str(peer_model_folder(python)), start)
        print(f"{config.minutes} minutes each on {sum(map(len, training.values()))} pairs of {len(training)} files, "
              f"batches of {config.batch_size}; ours in {config.dtype}\n{describe_machine(config.threads)}",
              *[f"left out: {line}" for line in left_out], sep="\n", flush=True)
        seconds, models = {}, {"start": start}
        models["ours"], seconds["ours"] = train_ours(config, training, start, folder / "ours")
        print(f"ours: {seconds['ours']:.0f} s", flush=True)
        for name, precision in precisions.items():
            models[name] = folder / name
            answer = train_peer(config, python, training, start, precision, models[name])
            seconds[name] = answer["seconds"]
            print(f"{name}: {answer['seconds']:.0f} s, {answer['pairs']} pairs, {answer['versions']}", flush=True)
        scores = {name: score(model, sts_pairs, heldout) for name, model in models.items()}
    report(config, scores, seconds, left_out)


def write_random_start(config: QualityBenchmarkConfig, init: str, folder: pathlib.Path) -> None:
    """A sentence-transformers folder of init's architecture and tokenizer with random weights."""
    import jax

    from model.files.export import ModelCard, export_sentence_transformers
    from model.files.weights import read_config_only
    from model.parameters import declare, initialize

    model, tokenizer_folder = read_config_only(init)
    encoder = dataclasses.replace(model.encoder, hidden_dropout=config.dropout, attention_dropout=config.dropout)
    model = dataclasses.replace(model, encoder=encoder, pooling="mean", normalize=True)
    parameters = jax.device_get(initialize(declare(model), jax.random.key(config.seed)))
    export_sentence_transformers(folder, model, parameters, tokenizer_folder, ModelCard(name="random start"))


def train_ours(
    config: QualityBenchmarkConfig, training: dict[str, Pairs], start: pathlib.Path, folder: pathlib.Path
) -> tuple[pathlib.Path, float]:
    """Prepares and trains within the time; returns the exported model and the seconds that both took."""
    begin = time.time()
    data_dir = prepare(training, str(start), folder)
    prepare_seconds = time.time() - begin

    def train(workdir: pathlib.Path, num_steps: int) -> float:
        begin = time.time()
        run_main(
            "train", f"--data_dir={data_dir}", f"--workdir={workdir}", f"--init={start}", f"--num_steps={num_steps}",
            f"--global_batch_size={config.batch_size}", f"--packing_blocks={config.packing_blocks}",
            f"--max_length={config.max_length}", f"--dtype={config.dtype}",
            f"--learning_rate={config.learning_rate}",
            f"--warmup_steps={int(num_steps * config.warmup_share)}", f"--mixture={config.mixture}",
            f"--seed={config.seed}", "--log_every=1", f"--checkpoint_every={num_steps}",
        )
        return time.time() - begin

    calibration_seconds = train(folder / "calibration", config.calibration_steps)
    steps_per_second = steady_steps_per_second(folder / "calibration", config)
    overhead = max(0.0, calibration_seconds - config.calibration_steps / steps_per_second)
    left = SAFETY * (60 * config.minutes - prepare_seconds - overhead)
    num_steps = int(left * steps_per_second)
    if num_steps < 2:
        raise ValueError(f"--minutes={config.minutes} is too short: preparing, starting and compiling take "
                         f"{prepare_seconds + overhead:.0f} s")
    print(f"ours: {num_steps} steps of {config.batch_size} pairs fit, beside {prepare_seconds:.0f} s to prepare and "
          f"{overhead:.0f} s to start, compile and save", flush=True)
    return folder / "run" / "export", prepare_seconds + train(folder / "run", num_steps)


def steady_steps_per_second(workdir: pathlib.Path, config: QualityBenchmarkConfig) -> float:
    """Harmonic mean over the second half of a run, of steps that did not compile: those near the median or faster."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seconds = [config.batch_size / line["pairs_per_second"] for line in lines if "pairs_per_second" in line]
    seconds = sorted(seconds[len(seconds) // 2:])
    median = seconds[len(seconds) // 2]
    steady = [value for value in seconds if value <= 3 * median]
    return len(steady) / sum(steady)


def train_peer(
    config: QualityBenchmarkConfig, python: str, training: dict[str, Pairs], start: pathlib.Path, precision: str,
    output: pathlib.Path,
) -> dict:
    """Runs the peer's trainer until the deadline; returns its answer."""
    pairs_file = start.parent / "pairs.json"
    pairs_file.write_text(json.dumps(training))
    names = ("batch_size", "max_length", "learning_rate", "warmup_share", "threads", "seed")
    started = time.time()
    arguments = {name: getattr(config, name) for name in names} | {
        "model": str(start), "pairs": str(pairs_file), "output": str(output), "bf16": precision == "bfloat16",
        "started": started, "deadline": started + 60 * config.minutes,
    }
    with peer_workers(python, "quality.py", {output.name: arguments}) as workers:
        return workers[output.name].ready


def score(model: pathlib.Path, sts_pairs: list[StsPair], heldout: Pairs) -> Scores:
    from inference.encoder import Encoder  # imports JAX

    encode = Encoder.load(model).encode
    return Scores(evaluate_sts(encode, sts_pairs), evaluate_pairs(encode, heldout))


def report(
    config: QualityBenchmarkConfig, scores: dict[str, Scores], seconds: dict[str, float], left_out: list[str]
) -> None:
    print(f"{'':16s}  STS-B dev Spearman  held-out MRR@10  accuracy@1  seconds")
    for name, (sts, retrieval) in scores.items():
        print(f"{name:16s}  {100 * sts.spearman:18.2f}  {100 * retrieval.mrr_at_10:15.2f}  "
              f"{100 * retrieval.accuracy_at_1:10.2f}  {seconds.get(name, 0):7.0f}")
    ours = scores["ours"]
    peers = {name: value for name, value in scores.items() if name.startswith("peer")}
    for name, peer in peers.items():
        for metric, gain in (
            ("Spearman", bootstrap_spearman(peer.sts.cosines, ours.sts.cosines, ours.sts.human_scores)),
            ("MRR@10", bootstrap_mrr(peer.retrieval.ranks, ours.retrieval.ranks)),
        ):
            print(f"ours - {name}, {metric}: {100 * gain.difference:+.2f}, 95 % interval {100 * gain.low:+.2f} to "
                  f"{100 * gain.high:+.2f}, not ahead in {gain.share_not_above:.1%} of resamples")
    spearman = max(peer.sts.spearman for peer in peers.values())
    mrr = max(peer.retrieval.mrr_at_10 for peer in peers.values())
    in_time = seconds["ours"] <= 60 * config.minutes
    if not in_time:
        print(f"ours took {seconds['ours']:.0f} s, more than its {60 * config.minutes:.0f} s: the comparison is void")
    print_result(
        "quality_vs_sentence_transformers", min(ours.sts.spearman / spearman, ours.retrieval.mrr_at_10 / mrr), 1.0,
        in_time and ours.sts.spearman > spearman and ours.retrieval.mrr_at_10 > mrr,
        spearman=round(100 * ours.sts.spearman, 2), peer_spearman=round(100 * spearman, 2),
        mrr_at_10=round(100 * ours.retrieval.mrr_at_10, 2), peer_mrr_at_10=round(100 * mrr, 2),
        seconds={name: round(value) for name, value in seconds.items()}, dtype=config.dtype, left_out=left_out,
    )


if __name__ == "__main__":
    run_benchmark(QualityBenchmarkConfig, benchmark)
