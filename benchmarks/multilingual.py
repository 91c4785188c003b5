"""Multilingual distillation on real text: the real all-MiniLM-L6-v2 taught German, Spanish, French and Chinese.

    python -m benchmarks.multilingual --data_dir=DIR [--languages=de,es,fr,zh] [--steps=N]

The student starts as a copy of the teacher. It learns the teacher's embedding of an English sentence for the sentence
and for its translation. The texts are STS-B's training sentences with machine translations, and NTREX's with human ones
(--ntrex). The translations of STS-B dev are held out; none of its sentences is in the training data. Scores before and
after training: translation accuracy (over all held-out sentences, mean of both directions), mean squared error x 100,
and cross-lingual STS-B dev Spearman (English against the other language).

It is smaller than in the paper: the student is the teacher itself, whose English vocabulary splits other scripts into
single characters (XLM-RoBERTa's weights are only on the hub); some ten thousand sentences; minutes of training.
Target: translation accuracy and cross-lingual STS rise in each language.
"""

import dataclasses
import gzip
import json
import pathlib
import tempfile

from benchmarks.harness import DataBenchmarkConfig, DtypeConfig, print_result, run_benchmark
from benchmarks.machine import describe_machine, resolved_dtype, use_cpu
from benchmarks.parallel_text import cut_parallel_text
from benchmarks.peers.peer import peer_model_folder, peer_python
from benchmarks.texts import logged_scores, run_main
from flags import REQUIRED, flag

NTREX_NAMES = {"de": "deu", "es": "spa", "fr": "fra", "it": "ita", "ja": "jpn", "nl": "nld", "pl": "pol", "pt": "por",
               "ru": "rus", "zh": "zho-CN"}


@dataclasses.dataclass(frozen=True)
class MultilingualBenchmarkConfig(DtypeConfig, DataBenchmarkConfig):
    data_dir: str = flag(REQUIRED, "folder with eval/stsb.tsv and multilingual/")
    teacher: str = flag("", "MODEL of teacher and student; empty: the real all-MiniLM-L6-v2 of the peer's environment")
    languages: tuple[str, ...] = flag(("de", "es", "fr", "zh"), "of stsb_multi_mt")
    ntrex: bool = flag(True, "train on NTREX's sentences too")
    steps: int = flag(600, "steps", minimum=1)
    batch_size: int = flag(64, "pairs of a sentence and a translation per step", minimum=1)
    learning_rate: float = flag(2e-4, "peak learning rate", above=0)


def benchmark(config: MultilingualBenchmarkConfig) -> None:
    use_cpu(config.threads)
    config = dataclasses.replace(config, dtype=resolved_dtype(config.dtype))
    teacher = config.teacher or str(peer_model_folder(peer_python(config.peer_python)))
    print(f"{config.steps} steps of {config.batch_size} pairs, {config.dtype}\n{describe_machine(config.threads)}",
          flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        cut_parallel_text(pathlib.Path(config.data_dir), folder, list(config.languages))
        if config.ntrex:
            write_ntrex(config, folder / "train" / "ntrex.tsv.gz")
        run_main("prepare", f"--source_dir={folder / 'train'}", f"--tokenizer={teacher}", "--tsv=parallel",
                 "--tsv_header", f"--data_dir={folder / 'data'}")
        run_main("teach", f"--teacher={teacher}", "--texts=first", f"--source_dir={folder / 'train'}",
                 f"--data_dir={folder / 'data'}", f"--teacher_dtype={config.dtype}")
        run_main(
            "distill", "--flagfile=recipes/multilingual-xlm-roberta.flags", f"--init={teacher}", f"--teacher={teacher}",
            f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}", f"--global_batch_size={config.batch_size}",
            "--num_epochs=0", f"--num_steps={config.steps}", f"--warmup_steps={config.steps // 10}",
            f"--learning_rate={config.learning_rate}", f"--eval_every={config.steps}", f"--dtype={config.dtype}",
            f"--checkpoint_every={config.steps}", f"--seed={config.seed}", "--dropout=false",
            f"--eval_parallel={folder / 'parallel' / 'stsb_dev.tsv.gz'}",
        )
        scores = logged_scores(folder / "run")
        sts = [cross_lingual_sts(config, model, folder) for model in (teacher, str(folder / "run" / "export"))]
    report(config, scores[0], scores[config.steps], *sts)


def write_ntrex(config: MultilingualBenchmarkConfig, path: pathlib.Path) -> None:
    """Writes English and the languages of NTREX-128, one sentence per line, under a header."""
    keys = [NTREX_NAMES[language] for language in config.languages]
    with gzip.open(pathlib.Path(config.data_dir, "multilingual", "ntrex128.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    missing = [key for key in keys if key not in rows[0]]
    if missing:
        raise ValueError(f"NTREX has no {', '.join(missing)}; it has {', '.join(rows[0])}")
    lines = [("en", *config.languages)] + [tuple(row[key] for key in ("eng", *keys)) for row in rows]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines("\t".join(" ".join(cell.split()) for cell in line) + "\n" for line in lines)


def cross_lingual_sts(config: MultilingualBenchmarkConfig, model: str, folder: pathlib.Path) -> dict[str, float]:
    """{language: STS-B dev Spearman x 100 of English against that language}, by main.py evaluate."""
    tasks = {f"stsb_en-{language}": language for language in config.languages}
    output = folder / "results.json"
    run_main("evaluate", f"--model={model}", f"--suite={','.join(tasks)}", "--split=dev", f"--data_dir={folder}",
             f"--output={output}")
    results = json.loads(output.read_text())
    return {tasks[line["task"]]: line["value"] for line in results if line["metric"] == "cosine_spearman"}


def report(config: MultilingualBenchmarkConfig, before: dict, after: dict, sts_before: dict, sts_after: dict) -> None:
    print("| language | translation accuracy | mean squared error x 100 | cross-lingual STS-B dev |\n|---|---|---|---|")
    rises = []
    for language in config.languages:
        accuracy, error = f"translation_accuracy:{language}", f"translation_mse:{language}"
        print(f"| {language} | {before[accuracy]:.1f} -> {after[accuracy]:.1f} | {before[error]:.2f} -> "
              f"{after[error]:.2f} | {sts_before[language]:.1f} -> {sts_after[language]:.1f} |")
        rises += [after[accuracy] - before[accuracy], sts_after[language] - sts_before[language]]
    print_result("multilingual", after["translation_accuracy"] / before["translation_accuracy"], 1.0, min(rises) > 0,
                 translation_accuracy=[before["translation_accuracy"], after["translation_accuracy"]],
                 cross_lingual_spearman=[sts_before, sts_after], dtype=config.dtype)


if __name__ == "__main__":
    run_benchmark(MultilingualBenchmarkConfig, benchmark)
