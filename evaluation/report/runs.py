"""Reads and checks the runs of a report: results of `main.py evaluate --output`, and WORKDIRs of trainings."""

import datetime
import gzip
import json
import pathlib
import re
import zlib
from typing import NamedTuple

import numpy as np

from data.files import read_json
from evaluation.report.curves import read_metrics
from evaluation.results import items_path

MEAN_OF_SOME = re.compile(r"_mean_of_\d+$")  # ends the name of a mean over some of the parts
MEAN_OF_TASKS = "sts_mean"  # left out: a report computes it with its interval, and says which tasks are missing
Items = dict[tuple[str, str, str], dict[str, list]]  # (task, split, part) -> columns (evaluation/task.py); "": all


class Key(NamedTuple):
    """Identifies a score; runs are compared key by key."""

    task: str
    split: str
    metric: str

    @property
    def base(self) -> str:
        """The task that it belongs to: sts12 for sts12:MSRpar, ntrex for ntrex_mean_of_3."""
        return MEAN_OF_SOME.sub("", self.task.partition(":")[0])

    @property
    def part(self) -> str:
        return self.task.partition(":")[2]


class Line(NamedTuple):
    """One line of results.json."""

    task: str
    split: str
    metric: str
    value: float  # x 100
    n: int
    model: str
    code: str
    seconds: float  # of the whole task

    @property
    def key(self) -> Key:
        return Key(self.task, self.split, self.metric)


class Run(NamedTuple):
    name: str
    place: str  # the argument
    lines: dict[Key, Line]  # in the order of the files
    items: Items
    texts: dict[str, list]  # token_counts, random_cosines, neighbours (evaluation/results.py)
    training: list[dict]  # lines of metrics.jsonl
    evaluations: pathlib.Path | None  # folder of step-*.npz
    written: str  # UTC, when the newest of its files was last changed
    notices: list[str]  # notes on it for the page

    def seconds(self) -> dict[str, float]:
        """Of each task. All its lines in one file have the same seconds; those of another file (split) are added."""
        distinct = dict.fromkeys((line.key.base, line.seconds) for line in self.lines.values())
        return {task: sum(seconds for other, seconds in distinct if other == task) for task, _ in distinct}


def read_runs(places: list[str], names: tuple[str, ...] = ()) -> list[Run]:
    """The runs of a report. Raises ValueError for bad files and for a name or a place that occurs twice."""
    resolved = [pathlib.Path(place).resolve() for place in places]
    twice = [place for place, path in zip(places, resolved) if resolved.count(path) > 1]
    if twice:
        raise ValueError(f"the run {twice[0]} is given twice")
    if names and (len(names) != len(places) or len(set(names)) < len(names)):
        raise ValueError(f"--names={','.join(names)} must be {len(places)} different names, one per run")
    return [read_run(place, name) for place, name in zip(places, names or short_names(resolved))]


def short_names(paths: list[pathlib.Path]) -> list[str]:
    """The last folder of each path, with as many parent folders as make it unique; runs/a/results.json is called a."""
    parts = [path.parts[1:-1] + (() if path.stem == "results" else (path.stem,)) if path.is_file() else path.parts[1:]
             for path in paths]
    names = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        length = next((k for k in lengths if sum(other[-k:] == own[-k:] for other in parts) == 1), len(own))
        names.append("/".join(own[-length:]))
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(map(str, paths))}: these runs would have the same name: give --names=a,b")
    return names


def read_run(place: str, name: str) -> Run:
    """RUN: a results.json, a folder with results*.json, a WORKDIR with metrics.jsonl, or both of the last two."""
    path = pathlib.Path(place)
    if not path.exists():
        raise ValueError(f"there is no file or folder {place}")
    files = [path] if path.is_file() else sorted(path.glob("results*.json"))
    metrics = path / "metrics.jsonl"
    training = read_metrics(metrics) if path.is_dir() and metrics.exists() else []
    if not files and not training:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ValueError(f"{place} is not a run: it has neither results*.json (main.py evaluate --output) nor a "
                         f"metrics.jsonl with lines (the WORKDIR of a training); it has {there}")
    lines, sources = read_results(files)
    notices: list[str] = []
    items: Items = {}
    texts: dict[str, list] = {"token_counts": [], "random_cosines": [], "neighbours": []}
    for file in files:
        if not items_path(file).exists():
            notices.append(f"{items_path(file)} is missing: {file.name} has no intervals, scatter plots, histograms")
            continue
        read = read_items(items_path(file))
        of_file = dict.fromkeys((key.base, key.split) for key, source in sources.items() if source == file)
        for task, split in of_file:
            items |= items_by_part(task, split, read["tasks"].get(task, {}))
        missing = sorted({task for task, _ in of_file} - read["tasks"].keys())
        if missing:
            notices.append(f"{items_path(file)} has no items of {', '.join(missing)}: they have no intervals")
        for column in texts:
            texts[column] += read[column]
    changed = max(file.stat().st_mtime for file in files + ([metrics] if training else []))
    written = datetime.datetime.fromtimestamp(changed, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    evaluations = path / "evaluations" if training else None
    return Run(name, place, lines, items, texts, training, evaluations, written, notices)


def read_results(files: list[pathlib.Path]) -> tuple[dict[Key, Line], dict[Key, pathlib.Path]]:
    """The results of one model in one or more results.json, and the file of each.

    Raises ValueError naming the files if they are of several models, or if a result occurs twice or is incomplete.
    """
    lines: dict[Key, Line] = {}
    sources: dict[Key, pathlib.Path] = {}
    for file in files:
        values = read_json(file)
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file} is not a results.json of main.py evaluate: it is not a list of results")
        for number, value in enumerate(values, start=1):
            missing = [name for name in Line._fields if not isinstance(value, dict) or name not in value]
            if missing:
                raise ValueError(f"{file}: result {number} lacks {', '.join(missing)}, which main.py evaluate writes")
            line = Line(*(value[name] for name in Line._fields))
            for name in Line._fields:
                of_text = name in ("task", "split", "metric", "model", "code")
                if not isinstance(value[name], str if of_text else int | float):
                    raise ValueError(f"{file}: result {number}: {name} is not a {'text' if of_text else 'number'}: "
                                     f"{value[name]!r}")
            if line.task.startswith(MEAN_OF_TASKS):
                continue
            if line.key in lines:
                raise ValueError(f"{file}: result {number}, {' '.join(line.key)}, was already in {sources[line.key]}")
            lines[line.key], sources[line.key] = line, file
    models = {line.model: sources[key] for key, line in lines.items()}
    if len(models) > 1:
        raise ValueError("results of different models cannot be one run; give each as a separate run: "
                         + ", ".join(f"{model} in {file}" for model, file in models.items()))
    return lines, sources


def read_items(path: pathlib.Path) -> dict:
    """results.items.json.gz; ValueError naming the file if it is damaged or something else."""
    try:
        read = json.loads(gzip.decompress(path.read_bytes()))
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    missing = [name for name in ("tasks", "token_counts", "random_cosines", "neighbours") if name not in read]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    for task, columns in read["tasks"].items():
        if len({len(column) for column in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
            raise ValueError(f"{path}: the columns of {task} differ in length: {lengths}")
    return read


def items_by_part(task: str, split: str, columns: dict[str, list]) -> Items:
    """The columns of a task, and those of each of its parts."""
    rows: dict[str, list[int]] = {}
    for row, part in enumerate(columns.get("part", ())):
        rows.setdefault(part, []).append(row)
    parts = {(task, split, part): {name: [column[row] for row in of_part] for name, column in columns.items()}
             for part, of_part in rows.items()}
    return parts | {(task, split, ""): columns}


def read_details(run: Run, step: int) -> dict[str, np.ndarray]:
    """evaluations/step-<step>.npz of a training: cosines, human scores and ranks; empty if it is not there."""
    path = run.evaluations / f"step-{step:07d}.npz"
    if not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)
