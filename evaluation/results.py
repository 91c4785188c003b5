"""The results of `main.py evaluate`: the table, results.json, and results.items.json.gz beside it."""

import gzip
import json
import pathlib
import subprocess
import tempfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.files import new_file
from evaluation.task import Result, Scores
from inference.embedding import unit_length

if TYPE_CHECKING:
    from evaluation.embedder import Embedder

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SAMPLE_TEXTS = 2000  # their cosines with each other stand for those of unrelated texts
NEIGHBOUR_QUERIES, NEIGHBOURS = 12, 5


class Scored(NamedTuple):
    task: str
    scores: Scores
    seconds: float  # of its scoring, and its share of the embedding by number of texts


def items_path(results: str | pathlib.Path) -> pathlib.Path:
    """results.json -> results.items.json.gz in the same folder."""
    return pathlib.Path(results).with_suffix(".items.json.gz")


def check_output(path: str) -> None:
    """Makes the folder of --output. Raises ValueError now, not after the work, if nothing can be written there."""
    if pathlib.Path(path).is_dir():
        raise ValueError(f"--output={path} is a folder; name a file in it, such as results.json")
    if items_path(path).is_dir():
        raise ValueError(f"--output={path}: {items_path(path)}, which is written too, is a folder")
    if pathlib.Path(path).exists() and not pathlib.Path(path).is_file():
        raise ValueError(f"--output={path} is not a regular file")
    folder = pathlib.Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # permission bits do not tell: root, read-only disks
    except OSError as error:
        raise ValueError(f"--output={path}: cannot write in {folder}: {error}") from error


def code_version() -> str:
    """The commit of this repository, with -dirty if files differ from it; "unknown" if it is no git checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def write_results(path: pathlib.Path, scored: list[Scored], embedder: "Embedder") -> None:
    """results.json, a list of {task, split, metric, value, n, model, code, seconds}; and the items file."""
    origin = {"model": embedder.encoder.fingerprint(), "code": code_version()}
    lines = [
        result._asdict() | origin | {"seconds": round(task.seconds, 6)}
        for task in scored for result in task.scores.results
    ]
    items = {"tasks": {task.task: task.scores.items for task in scored}} | describe_texts(embedder)
    with new_file(items_path(path)) as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(json.dumps(items, ensure_ascii=False).encode())
    with new_file(path) as file:
        file.write((json.dumps(lines, indent=1, ensure_ascii=False) + "\n").encode())


def describe_texts(embedder: "Embedder") -> dict:
    """What a report shows of the texts: lengths in tokens, and the cosines and nearest neighbours of a sample."""
    texts = embedder.texts
    if not texts:
        return {"token_counts": [], "random_cosines": [], "neighbours": []}
    generator = np.random.default_rng(0)
    sample = [texts[row] for row in generator.permutation(len(texts))[:SAMPLE_TEXTS]]
    embeddings = unit_length(embedder.prompted(sample))
    cosines = embeddings @ embeddings.T
    above = cosines[np.triu_indices(len(sample), 1)]
    np.fill_diagonal(cosines, -np.inf)
    neighbours = [
        {"text": sample[row], "nearest": [[sample[near], round(float(cosines[row, near]), 4)]
                                          for near in np.argsort(-cosines[row])[:min(NEIGHBOURS, len(sample) - 1)]]}
        for row in range(min(NEIGHBOUR_QUERIES, len(sample)))
    ]
    random_cosines = generator.choice(above, min(SAMPLE_TEXTS, len(above)), replace=False)
    return {
        "token_counts": embedder.encoder.token_counts(texts).tolist(),
        "random_cosines": [round(float(cosine), 4) for cosine in random_cosines],
        "neighbours": neighbours,
    }


def print_table(results: list[Result]) -> None:
    task_width, metric_width = (max(len(getattr(result, name)) for result in results) for name in ("task", "metric"))
    print(f"{'task':{task_width}s}  split    {'metric':{metric_width}s}  {'n':>6s}    x 100")
    for result in results:
        decimals = 4 if result.metric == "mse" else 2
        print(f"{result.task:{task_width}s}  {result.split:7s}  {result.metric:{metric_width}s}  "
              f"{result.n:6d}  {result.value:7.{decimals}f}")
