"""Seconds of the STS suite beside sentence-transformers' EmbeddingSimilarityEvaluator: same weights, pairs, threads.

    python -m benchmarks.evaluate_vs_sentence_transformers --data_dir=DIR [--peer_python=PYTHON]

Scores the real all-MiniLM-L6-v2 in float32 on the seven STS tasks, or on those whose files are in DIR, and names the
others. Each repetition runs ours and then the peer, with the model loaded. Ours reads the files, compiles (programs of
earlier repetitions are dropped), embeds each distinct text once and scores. The peer has the pairs in memory and embeds
each list of sentences. Every task's score must equal the peer's within 0.01.

Each repetition also measures how fast the machine multiplies matrices in float32 (benchmarks/machine.py). A side's
share of that counts the texts that it embeds: ours counts each distinct text once, the peer all texts.
"""

import dataclasses
import json
import pathlib
import tempfile
import time

from benchmarks.harness import DataBenchmarkConfig, paired_ratio, print_result, run_benchmark
from benchmarks.machine import describe_machine, flops_of_texts, use_cpu
from benchmarks.peers.peer import peer_model_folder, peer_python, peer_workers, product_rates
from evaluation.files.sts_places import find_places
from evaluation.tasks import sts
from flags import flag

TARGET = 2.0
LARGEST_DIFFERENCE = 0.01  # of a score x 100


@dataclasses.dataclass(frozen=True)
class EvaluateBenchmarkConfig(DataBenchmarkConfig):
    data_dir: str = flag("", "folder of the STS files")
    model: str = flag("", "folder of a sentence-transformers model; empty: the real all-MiniLM-L6-v2")
    tasks: tuple[str, ...] = flag(sts.SEVEN, "tasks to score; those without files are named and left out")
    repeats: int = flag(3, "repetitions", minimum=1)
    batch_size: int = flag(32, "batch size of the peer; 32 is its default", minimum=1)


def benchmark(config: EvaluateBenchmarkConfig) -> None:
    use_cpu(config.threads)
    import jax

    from evaluation.embedder import Embedder
    from evaluation.evaluate import score_tasks
    from inference.encoder import Encoder

    found = find_places(config.data_dir)
    names = [name for name in config.tasks if name in found]
    missing = [name for name in config.tasks if name not in names]
    if not names:
        raise ValueError(f"--data_dir={config.data_dir} has files of none of {', '.join(config.tasks)}")
    python = peer_python(config.peer_python)
    model = config.model or peer_model_folder(python)
    encoder = Encoder.load(model)

    def evaluate_ours() -> tuple[float, dict]:
        jax.clear_caches()
        begin = time.perf_counter()
        tasks = [sts.read_task(config.data_dir, name, "test") for name in names]
        scored = list(score_tasks(Embedder(encoder), tasks))
        return time.perf_counter() - begin, {one.task: one.scores for one in scored}

    seconds, scores = evaluate_ours()
    with tempfile.TemporaryDirectory() as temporary:
        tasks_file = pathlib.Path(temporary, "tasks.json")
        tasks_file.write_text(json.dumps({name: scores[name].items for name in names}))
        arguments = {"model": str(model), "tasks": str(tasks_file), "threads": config.threads}
        texts = [text for name in names for side in ("sentence1", "sentence2") for text in scores[name].items[side]]
        flops = [flops_of_texts(encoder.config.encoder, encoder.token_counts(each))
                 for each in (list(dict.fromkeys(texts)), texts)]
        with (peer_workers(python, "evaluate.py", {"peer": arguments}) as workers,
              product_rates(python, encoder.config.encoder, ["float32"], config.threads) as rates):
            product_rate = rates["float32"]
            print(f"{', '.join(names)}: {sum(len(scores[name].items['cosine']) for name in names)} pairs"
                  + (f"; without {', '.join(missing)}, whose files are not there" if missing else "")
                  + f"\n{describe_machine(config.threads, workers['peer'].ready['versions'])}", flush=True)
            ours, theirs, products = [], [], []
            for repeat in range(config.repeats):
                seconds, scores = (seconds, scores) if repeat == 0 else evaluate_ours()
                answer = workers["peer"].ask(batch_size=config.batch_size)
                ours.append(1 / seconds)
                theirs.append(1 / answer["seconds"])
                products.append(product_rate.measure())
                print(f"repetition {repeat + 1}: ours {seconds:.1f} s, peer {answer['seconds']:.1f} s", flush=True)
            print(product_rate)
    shares = [paired_ratio([each * rate for rate in rates], products).ratio
              for each, rates in zip(flops, (ours, theirs))]
    print(f"of the product rate, over real tokens: ours {shares[0]:.0%}, peer {shares[1]:.0%}")
    report(names, missing, {name: scores[name].results[0].value for name in names}, answer["scores"], ours, theirs,
           shares)


def report(names: list[str], missing: list[str], scores: dict[str, float], peer_scores: dict[str, float],
           ours: list[float], theirs: list[float], shares: list[float]) -> None:
    for name in names:
        print(f"{name}: cosine Spearman x 100 ours {scores[name]:.3f}, peer {peer_scores[name]:.3f}")
    difference = max(abs(scores[name] - peer_scores[name]) for name in names)
    ratio = paired_ratio(ours, theirs)
    print_result(
        "evaluate_vs_sentence_transformers", ratio.ratio, TARGET,
        ratio.ratio >= TARGET and difference <= LARGEST_DIFFERENCE,
        lowest=round(ratio.lowest, 3), highest=round(ratio.highest, 3), seconds=round(1 / ratio.ours, 1),
        peer_seconds=round(1 / ratio.theirs, 1), product_share=round(shares[0], 3),
        peer_product_share=round(shares[1], 3), tasks=names, missing=missing, largest_difference=round(difference, 5),
    )


if __name__ == "__main__":
    run_benchmark(EvaluateBenchmarkConfig, benchmark)
