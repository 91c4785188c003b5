"""Self-supervised cross-view training on real text, beside its ablations: STS-B dev Spearman before and after.

    python -m benchmarks.sct_self --data_dir=DIR [--steps=N]

A BERT of BERT-Mini's size starts from random weights and sees the same sentences of DIR/train in every run. There are
no pairs; views are made by word dropout, in place of back-translations. Every run has the same number of steps, batch
size and learning rate. STS-B's sentences are not in the training data.

    SCT from random weights    two queues, references of the encoder itself, no head
    head, identical views, momentum reference, one queue, no queue, contrastive loss    one thing changed in each

Two settings differ from the published ones because the weights are random at the start. All embeddings are then almost
equal, so at the published temperatures a reference is almost equally similar to all rows of the queue, and the student
learns the same embedding for all texts. Hence the temperatures are 0.002 and 0.02. With the paper's head, which is made
for a pre-trained BERT, the score falls; here it is one of the ablations.

Target: SCT's score rises, and the 95 % interval of a paired bootstrap is above zero. It is smaller than in the paper:
random weights instead of a pre-trained BERT (so published figures are out of reach), few sentences and steps, a short
queue, views that keep the words. The ranking of the ablations here says nothing about the published one.
"""

import dataclasses
import pathlib
import tempfile
import time

import numpy as np

from benchmarks.distill_hpd import FILES
from benchmarks.harness import BenchmarkConfig, DtypeConfig, print_result, run_benchmark
from benchmarks.machine import describe_machine, resolved_dtype, use_cpu
from benchmarks.texts import distinct_sentences, logged_scores, prepare_lines, read_training_pairs, run_main
from evaluation.measures.bootstrap import bootstrap_spearman
from evaluation.tasks.sts import read_sts
from flags import REQUIRED, flag

BASE = "SCT from random weights"
ABLATIONS = {
    BASE: (),
    "head": ("--sct_head=true",),
    "identical views": ("--views=identical",),
    "momentum reference": ("--reference=momentum", "--reference_momentum=0.99"),
    "one queue": ("--num_queues=1",),
    "no queue": ("--queue_size=0",),
    "contrastive loss": ("--objective=contrastive", "--normalize=true"),
}


@dataclasses.dataclass(frozen=True)
class SctBenchmarkConfig(DtypeConfig, BenchmarkConfig):
    data_dir: str = flag(REQUIRED, "folder with train/*.jsonl.gz and eval/stsb.tsv")
    init: str = flag("data/sample/model", "folder whose architecture and tokenizer are used, with random weights")
    files: tuple[str, ...] = flag(FILES, "files of train/ whose sentences are trained on")
    sentences: int = flag(50_000, "distinct sentences to train on, at most", minimum=1)
    longest: int = flag(200, "characters of a sentence, at most", minimum=1)
    steps: int = flag(120, "steps of each run", minimum=1)
    batch_size: int = flag(128, "sentences per step", minimum=1)
    learning_rate: float = flag(1e-4, "peak learning rate", above=0)
    reference_temperature: float = flag(0.002, "tau_ref", above=0)
    temperature: float = flag(0.02, "tau", above=0)
    queue_size: int = flag(8192, "rows of each queue", minimum=1)
    view_rate: float = flag(0.3, "share of the tokens that a view leaves out", minimum=0, maximum=1)
    runs: tuple[str, ...] = flag(tuple(ABLATIONS), "runs to make, of the docstring's names")


def benchmark(config: SctBenchmarkConfig) -> None:
    use_cpu(config.threads)
    config = dataclasses.replace(config, dtype=resolved_dtype(config.dtype))
    unknown = set(config.runs) - set(ABLATIONS)
    if unknown:
        raise ValueError(f"--runs: {', '.join(sorted(unknown))} is none of {', '.join(ABLATIONS)}")
    sts_path = pathlib.Path(config.data_dir, "eval", "stsb.tsv")
    sts_texts = {text for pair in read_sts(sts_path) for text in pair[:2]}
    sentences = distinct_sentences(
        read_training_pairs(config.data_dir, config.files), config.longest, sts_texts, config.seed)[: config.sentences]
    print(f"{len(sentences)} sentences, {config.steps} steps of {config.batch_size} in each run, {config.dtype}\n"
          f"{describe_machine(config.threads)}", flush=True)
    rows, gain = [], None
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data_dir = prepare_lines(sentences, config.init, folder, "sentences.txt")
        for name in config.runs:
            workdir, begin = folder / name.replace(" ", "-"), time.time()
            run_main(
                "train", "--flagfile=recipes/sct-self-bert-mini.flags", f"--init={config.init}", "--random_init",
                "--views=word_dropout", f"--view_rate={config.view_rate}", "--sct_head=false",
                f"--reference_temperature={config.reference_temperature}", f"--temperature={config.temperature}",
                f"--queue_size={config.queue_size}", f"--global_batch_size={config.batch_size}", "--num_epochs=0",
                f"--num_steps={config.steps}",
                f"--learning_rate={config.learning_rate}", "--patience_epochs=0", f"--eval_sts={sts_path}",
                f"--eval_every={-(-config.steps // 4)}", f"--checkpoint_every={config.steps}",
                f"--dtype={config.dtype}", f"--seed={config.seed}", "--max_length=64",
                f"--data_dir={data_dir}", *ABLATIONS[name], f"--workdir={workdir}",
            )
            scores = {step: line["sts_spearman"] for step, line in logged_scores(workdir).items()}
            best = max(scores, key=scores.get)
            rows.append((name, scores[0], scores[best], best, time.time() - begin))
            if name == BASE:
                first, last = (np.load(workdir / "evaluations" / f"step-{step:07d}.npz") for step in (0, config.steps))
                gain = bootstrap_spearman(first["sts_cosines"], last["sts_cosines"], first["sts_human_scores"])
            print(f"{name}: {scores}", flush=True)
    print("| run | STS-B dev, start | STS-B dev, best | at step | seconds |\n|---|---|---|---|---|")
    for name, start, best, step, seconds in rows:
        print(f"| {name} | {start:.2f} | {best:.2f} | {step} | {seconds:.0f} |")
    if gain is not None:
        print(f"{BASE}, step {config.steps} against step 0: {100 * gain.difference:+.2f} (95 % of a paired bootstrap: "
              f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f})")
        print_result("sct_self", 100 * gain.difference, 0.0, gain.low > 0,
                     spearman={name: [start, best] for name, start, best, _, _ in rows},
                     dtype=config.dtype)


if __name__ == "__main__":
    run_benchmark(SctBenchmarkConfig, benchmark)
