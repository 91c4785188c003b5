"""Distillation on real text: how well three layers and 128 dimensions reproduce the real all-MiniLM-L6-v2.

    python -m benchmarks.distill_hpd --data_dir=DIR [--steps=N]

Teacher: all-MiniLM-L6-v2 (6 layers, 384 dimensions). Students, each trained for the same number of steps on the same
sentences of DIR/train:

    HPD                    every second layer of the teacher, Dense + Tanh to 128, mean squared error to its 128 axes
    HPD, random weights    the same from random weights
    SCT distillation       every second layer, 384 dimensions, L_CD with a queue, dropout-only views

All are scored by STS-B dev Spearman; its sentences are not in the training data. Target: HPD reaches 92 % of the
teacher.

Everything is smaller than in the papers: the teacher (theirs is a RoBERTa-large), the number of sentences and steps.
SCT starts from the teacher's layers, not from a self-supervised checkpoint, because the published starting weights are
only on the hub.
"""

import dataclasses
import pathlib
import tempfile
import time

import numpy as np

from benchmarks.harness import DataBenchmarkConfig, DtypeConfig, print_result, run_benchmark
from benchmarks.machine import describe_machine, resolved_dtype, use_cpu
from benchmarks.peers.peer import peer_model_folder, peer_python
from benchmarks.texts import distinct_sentences, logged_scores, prepare_lines, read_training_pairs, run_main
from evaluation.tasks.sts import evaluate_sts, read_sts
from flags import flag

FILES = ("snli_dev_triplets", "flickr30k_captions", "coco_captions_testall", "wikisplit", "altlex", "disflqa",
         "squad_question_sentence", "nq_open_dev", "stackexchange_linked_titles")
TARGET = 0.92


@dataclasses.dataclass(frozen=True)
class DistillBenchmarkConfig(DtypeConfig, DataBenchmarkConfig):
    teacher: str = flag("", "MODEL of the teacher; empty: the real all-MiniLM-L6-v2 of the peer's environment")
    keep_layers: str = flag("1,3,5", "layers of the teacher that the students start from")
    files: tuple[str, ...] = flag(FILES, "files of train/ whose sentences are trained on")
    sentences: int = flag(60_000, "distinct sentences to train on, at most", minimum=1)
    longest: int = flag(256, "characters of a sentence, at most", minimum=1)
    heldout: int = flag(1000, "sentences held out, for teacher_mse", minimum=1)
    axes: int = flag(128, "dimensions of the HPD students", minimum=1)
    steps: int = flag(600, "steps of each student", minimum=1)
    batch_size: int = flag(128, "sentences per step", minimum=1)
    learning_rate: float = flag(1e-3, "peak learning rate of the HPD students", above=0)
    sct_learning_rate: float = flag(1e-4, "peak learning rate of SCT distillation", above=0)
    queue_size: int = flag(16384, "rows of SCT's queue", minimum=1)


def benchmark(config: DistillBenchmarkConfig) -> None:
    use_cpu(config.threads)
    config = dataclasses.replace(config, dtype=resolved_dtype(config.dtype))
    teacher = config.teacher or str(peer_model_folder(peer_python(config.peer_python)))
    sts_path = pathlib.Path(config.data_dir, "eval", "stsb.tsv")
    sts_texts = {text for pair in read_sts(sts_path) for text in pair[:2]}
    sentences = distinct_sentences(
        read_training_pairs(config.data_dir, config.files), config.longest, sts_texts, config.seed)
    heldout, sentences = sentences[: config.heldout], sentences[config.heldout:][: config.sentences]
    print(f"{len(sentences)} sentences, {config.steps} steps of {config.batch_size} for each student, {config.dtype}\n"
          f"{describe_machine(config.threads)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "heldout.txt").write_text("".join(line + "\n" for line in heldout))
        data_dir = prepare_lines(sentences, teacher, folder, "sentences.txt")
        begin = time.time()
        run_main("teach", f"--teacher={teacher}", "--texts=first", f"--source_dir={folder / 'source'}",
                 f"--data_dir={data_dir}", f"--teacher_dtype={config.dtype}")
        print(f"the teacher's embeddings took {time.time() - begin:.0f} s", flush=True)
        whole, projected = teacher_scores(config, teacher, heldout + sentences[:40_000 - len(heldout)], sts_path)
        rows = [("teacher", 384, None, whole, None, 0.0), (f"teacher, {config.axes} axes", config.axes, None, projected,
                                                            None, 0.0)]
        common = ("distill", f"--teacher={teacher}", f"--data_dir={data_dir}", f"--eval_sts={sts_path}",
                  f"--global_batch_size={config.batch_size}", "--num_epochs=0", f"--num_steps={config.steps}",
                  f"--warmup_steps={config.steps // 10}", "--warmup_share=0", f"--eval_every={-(-config.steps // 4)}",
                  f"--checkpoint_every={config.steps}", "--teacher_pooling=mean", f"--dtype={config.dtype}",
                  f"--seed={config.seed}", "--dropout=false", "--select=sts_spearman")
        layers = f"--keep_layers={config.keep_layers}"
        hpd = ("--flagfile=recipes/hpd.flags", f"--dense={config.axes}", f"--teacher_pca={config.axes}",
               f"--learning_rate={config.learning_rate}", f"--eval_teacher={folder / 'heldout.txt'}")
        runs = {
            "HPD": (config.axes, (*hpd, f"--init={teacher}", layers)),
            "HPD, random weights": (config.axes, (*hpd, f"--init={teacher}", layers, "--random_init")),
            "SCT distillation": (0, (
                "--flagfile=recipes/sct-distill.flags", "--dense=0", "--views=identical", "--patience_epochs=0",
                f"--init={teacher}", layers, f"--learning_rate={config.sct_learning_rate}", "--dropout=true",
                f"--queue_size={config.queue_size}")),
        }
        for name, (width, options) in runs.items():
            workdir, begin = folder / name.replace(" ", "-"), time.time()
            # The flags of the recipe come first: a later flag wins.
            run_main(common[0], options[0], *common[1:], *options[1:], f"--workdir={workdir}")
            scores = logged_scores(workdir)
            best = max(scores.values(), key=lambda line: line["sts_spearman"])
            rows.append((name, width or 384, scores[0]["sts_spearman"], best["sts_spearman"], best.get("teacher_mse"),
                         time.time() - begin))
            print(f"{name}: {best}", flush=True)
    report(config.dtype, rows)


def teacher_scores(config: DistillBenchmarkConfig, teacher: str, sample: list[str], sts_path: pathlib.Path) -> list:
    """STS-B dev Spearman x 100 of the teacher, and of its embeddings projected onto their principal axes."""
    from inference.encoder import Encoder  # imports JAX
    from sharding.layout import make_mesh
    from training.objectives.mse import principal_axes

    pairs = read_sts(sts_path, "dev")
    encode = Encoder.load(teacher, dtype=config.dtype).encode
    axes, share = principal_axes(encode(sample[:10_000]), config.axes, make_mesh())
    print(f"{config.axes} axes hold {share:.1%} of the variance of the teacher's embeddings", flush=True)
    return [100 * evaluate_sts(function, pairs).spearman for function in (encode, lambda texts: encode(texts) @ axes)]


def report(dtype: str, rows: list[tuple]) -> None:
    teacher = rows[0][3]
    print("| model | dimensions | STS-B dev, start | STS-B dev, best | of the teacher | held-out MSE x 100 | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, width, start, best, error, seconds in rows:
        cells = (name, width, *("" if x is None else f"{x:.2f}" for x in (start, best)), f"{best / teacher:.1%}",
                 "" if error is None else f"{error:.4f}", f"{seconds:.0f}" if seconds else "")
        print("| " + " | ".join(map(str, cells)) + " |")
    scores = {name: round(best, 2) for name, _, _, best, _, _ in rows}
    ratio = scores["HPD"] / teacher
    print_result("distill_hpd", ratio, TARGET, bool(np.round(ratio, 4) >= TARGET), spearman=scores,
                 dtype=dtype)


if __name__ == "__main__":
    run_benchmark(DistillBenchmarkConfig, benchmark)
