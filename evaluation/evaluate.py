"""Score a model: STS Spearman, held-out retrieval and translations, all x 100.

Retrieval puts the model's own prompts, if it has any, before queries and candidates; nothing else does.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Literal

from data.formats import Prompts
from evaluation.lines import numbered_lines
from evaluation.retrieval import evaluate_pairs, read_pairs
from evaluation.sts import STS_COLUMNS, EncodeFunction, evaluate_sts, read_sts
from evaluation.translation import ParallelTexts, evaluate_translations, read_parallel
from flags import REQUIRED, flag
from model.modules import retrieval_prompts

TASK_FILES = {"sickr": "sick"}  # tasks whose file has another name
SUFFIXES = (".tsv", ".tsv.gz")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers') or a hub id")
    suite: tuple[str, ...] = flag((), "STS tasks, comma-separated: stsb, sts12, ..., sickr, with files in --data_dir")
    data_dir: str = flag("", "folder of the STS files (TASK.tsv or .tsv.gz), or the folder above it if that is eval/")
    split: str = flag("test", "split of the STS files")
    pairs: tuple[str, ...] = flag((), "files of held-out pairs (.jsonl.gz), comma-separated: score retrieval in each")
    parallel: tuple[str, ...] = flag((), "files of translations (.tsv, .tsv.gz; header: source language, others), "
                                         "comma-separated: translation accuracy in each language")
    teacher: str = flag("", "MODEL: also the mean squared error of the model's embeddings of the translations against "
                            "the teacher's of their sources, both before normalisation")
    output: str = flag("", "results.json to write: a list of {task, split, metric, value, n}")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of activations and matrix products")


def sts_files(data_dir: str) -> dict[str, pathlib.Path]:
    """{task: file} of the STS files in data_dir/eval, or in data_dir itself if it has no folder eval."""
    if not pathlib.Path(data_dir or ".").is_dir():
        raise ValueError(f"--data_dir={data_dir} is not a folder")
    folder = pathlib.Path(data_dir, "eval")
    folder = folder if folder.is_dir() else folder.parent
    names = {file: task for task, file in TASK_FILES.items()}
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(SUFFIXES):
            continue
        _, header = next(numbered_lines(path), ("", ""))
        if set(STS_COLUMNS) <= set(header.split("\t")):
            name = path.name.split(".tsv")[0]
            files[names.get(name, name)] = path
    return files


def score_sts(encode: EncodeFunction, task: str, path: pathlib.Path, split: str) -> list[dict]:
    pairs = read_sts(path, split)
    return [_result(task, split, "cosine_spearman", evaluate_sts(encode, pairs).spearman, len(pairs))]


def score_retrieval(encode: EncodeFunction, path: str, prompts: Prompts) -> list[dict]:
    pairs = read_pairs(path)
    scores = evaluate_pairs(encode, pairs, prompts)
    task = pathlib.Path(path).name.split(".jsonl")[0]
    return [
        _result(task, "heldout", "accuracy@1", scores.accuracy_at_1, len(pairs)),
        _result(task, "heldout", "mrr@10", scores.mrr_at_10, len(pairs)),
    ]


def score_translations(
    encode: EncodeFunction, name: str, parallel: ParallelTexts, teacher: EncodeFunction | None
) -> list[dict]:
    results = []
    for language, scores in evaluate_translations(encode, parallel, teacher).items():
        task = f"{name}:{language}"
        results.append(_result(task, "heldout", "translation_accuracy", scores.accuracy, scores.rows))
        if scores.mse is not None:
            results.append(_result(task, "heldout", "mse", scores.mse, scores.rows))
    return results


def _result(task: str, split: str, metric: str, value: float, n: int) -> dict:
    return {"task": task, "split": split, "metric": metric, "value": 100 * value, "n": n}


def print_table(results: list[dict]) -> None:
    task_width, metric_width = (max(len(result[name]) for result in results) for name in ("task", "metric"))
    print(f"{'task':{task_width}s}  split    {'metric':{metric_width}s}  {'n':>6s}    x 100")
    for result in results:
        decimals = 4 if result["metric"] == "mse" else 2
        print(f"{result['task']:{task_width}s}  {result['split']:7s}  {result['metric']:{metric_width}s}  "
              f"{result['n']:6d}  {result['value']:7.{decimals}f}")


def evaluate(config: EvaluateConfig) -> None:
    """Scores the model on every task, prints a table and writes results.json. Bad flags and files fail before that."""
    if not config.suite and not config.pairs and not config.parallel:
        raise ValueError("nothing to score: give --suite=stsb,... with --data_dir=DIR, --pairs=FILE or --parallel=FILE")
    if config.teacher and not config.parallel:
        raise ValueError(f"--teacher={config.teacher} is compared with on translations: give --parallel=FILE")
    files = sts_files(config.data_dir) if config.suite else {}
    for task in config.suite:
        if task not in files:
            known = ", ".join(files) or "no STS files"
            raise ValueError(f"--suite={task} is unknown; --data_dir={config.data_dir} has {known}")
        read_sts(files[task], config.split)
    parallels = [(pathlib.Path(path).name.split(".tsv")[0], read_parallel(path)) for path in config.parallel]

    from model.inference import Encoder  # JAX starts only once the flags make sense

    encoder, teacher = Encoder.load(config.model, dtype=config.dtype), None
    encode, prompts = encoder.encode, retrieval_prompts(encoder.config)
    if config.teacher:
        teacher = functools.partial(Encoder.load(config.teacher, dtype=config.dtype).encode, normalize=False)
    results = [line for task in config.suite for line in score_sts(encode, task, files[task], config.split)]
    results += [line for path in config.pairs for line in score_retrieval(encode, path, prompts)]
    for name, texts in parallels:
        results += score_translations(functools.partial(encode, normalize=False), name, texts, teacher)
    print_table(results)
    if config.output:
        output = pathlib.Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
