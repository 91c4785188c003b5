"""Score a model: STS Spearman and held-out retrieval, all x 100."""

import dataclasses
import json
import pathlib
from typing import Literal

from evaluation.lines import numbered_lines
from evaluation.retrieval import evaluate_pairs, read_pairs
from evaluation.sts import STS_COLUMNS, EncodeFunction, evaluate_sts, read_sts
from flags import REQUIRED, flag

TASK_FILES = {"sickr": "sick"}  # tasks whose file has another name
SUFFIXES = (".tsv", ".tsv.gz")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers') or a hub id")
    suite: tuple[str, ...] = flag((), "STS tasks, comma-separated: stsb, sts12, ..., sickr, with files in --data_dir")
    data_dir: str = flag("", "folder of the STS files (TASK.tsv or .tsv.gz), or the folder above it if that is eval/")
    split: str = flag("test", "split of the STS files")
    pairs: tuple[str, ...] = flag((), "files of held-out pairs (.jsonl.gz), comma-separated: score retrieval in each")
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


def score_retrieval(encode: EncodeFunction, path: str) -> list[dict]:
    pairs = read_pairs(path)
    scores = evaluate_pairs(encode, pairs)
    task = pathlib.Path(path).name.split(".jsonl")[0]
    return [
        _result(task, "heldout", "accuracy@1", scores.accuracy_at_1, len(pairs)),
        _result(task, "heldout", "mrr@10", scores.mrr_at_10, len(pairs)),
    ]


def _result(task: str, split: str, metric: str, value: float, n: int) -> dict:
    return {"task": task, "split": split, "metric": metric, "value": 100 * value, "n": n}


def print_table(results: list[dict]) -> None:
    width = max(len(result["task"]) for result in results)
    print(f"{'task':{width}s}  split    metric           {'n':>6s}   x 100")
    for result in results:
        print(f"{result['task']:{width}s}  {result['split']:7s}  {result['metric']:15s}  {result['n']:6d}  "
              f"{result['value']:6.2f}")


def evaluate(config: EvaluateConfig) -> None:
    """Scores the model on every task, prints a table and writes results.json. Bad flags and files fail before that."""
    if not config.suite and not config.pairs:
        raise ValueError("nothing to score: give --suite=stsb,... with --data_dir=DIR, or --pairs=FILE")
    files = sts_files(config.data_dir) if config.suite else {}
    for task in config.suite:
        if task not in files:
            known = ", ".join(files) or "no STS files"
            raise ValueError(f"--suite={task} is unknown; --data_dir={config.data_dir} has {known}")
        read_sts(files[task], config.split)

    from model.inference import Encoder  # JAX starts only once the flags make sense

    encode = Encoder.load(config.model, dtype=config.dtype).encode
    results = [line for task in config.suite for line in score_sts(encode, task, files[task], config.split)]
    results += [line for path in config.pairs for line in score_retrieval(encode, path)]
    print_table(results)
    if config.output:
        output = pathlib.Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
