"""What a report is of: the results of `main.py evaluate --output` and the WORKDIRs of trainings, read and checked."""

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

MEAN_OF_SOME = re.compile(r"_mean_of_\d+$")  # ends the name of a mean over not all parts
MEAN_OF_TASKS = "sts_mean"  # left out, because a report computes it with its interval, and says what it lacks
Items = dict[tuple[str, str, str], dict[str, list]]  # (task, split, part) -> columns (evaluation/task.py); all: part ""


class Key(NamedTuple):
    """What a score is of; runs are compared key by key."""

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
    notices: list[str]  # what the page must say about it

    def seconds(self) -> dict[str, float]:
        """Of each task; all its lines of one file carry the same, those of another file (another split) add to it."""
        distinct = dict.fromkeys((line.key.base, line.seconds) for line in self.lines.values())
        return {task: sum(seconds for other, seconds in distinct if other == task) for task, _ in distinct}


def read_runs(places: list[str], names: tuple[str, ...] = ()) -> list[Run]:
    """The runs of a report; ValueError for what is no run, for a name or a place that comes twice, and bad files."""
    resolved = [pathlib.Path(place).resolve() for place in places]
    twice = [place for place, path in zip(places, resolved) if resolved.count(path) > 1]
    if twice:
        raise ValueError(f"the run {twice[0]} is given twice")
    if names and (len(names) != len(places) or len(set(names)) < len(names)):
        raise ValueError(f"--names={','.join(names)} must be {len(places)} different names, one a run")
    return [read_run(place, name) for place, name in zip(places, names or short_names(resolved))]


def short_names(paths: list[pathlib.Path]) -> list[str]:
    """The last folder of each path, with as many of those above as make it unique; runs/a/results.json is called a."""
    parts = [path.parts[1:-1] + (() if path.stem == "results" else (path.stem,)) if path.is_file() else path.parts[1:]
             for path in paths]
    names = []
    for own in parts:
        lengths = range(1, len(own) + 1)
        length = next((k for k in lengths if sum(other[-k:] == own[-k:] for other in parts) == 1), len(own))
        names.append("/".join(own[-length:]))
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(map(str, paths))}: runs of one folder have one name; give --names=a,b")
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
        raise ValueError(f"{place} is no run: it has neither results*.json (main.py evaluate --output) nor a "
                         f"metrics.jsonl with lines (a training's WORKDIR); it has {there}")
    lines, sources = read_results(files)
    notices: list[str] = []
    items: Items = {}
    texts: dict[str, list] = {"token_counts": [], "random_cosines": [], "neighbours": []}
    for file in files:
        if not items_path(file).exists():
            notices.append(f"{items_path(file)} is missing: no intervals, scatter plots and histograms of {file.name}")
            continue
        read = read_items(items_path(file))
        of_file = dict.fromkeys((key.base, key.split) for key, source in sources.items() if source == file)
        for task, split in of_file:
            items |= items_by_part(task, split, read["tasks"].get(task, {}))
        missing = sorted({task for task, _ in of_file} - read["tasks"].keys())
        if missing:
            notices.append(f"{items_path(file)} has no items of {', '.join(missing)}: no intervals")
        for column in texts:
            texts[column] += read[column]
    changed = max(file.stat().st_mtime for file in files + ([metrics] if training else []))
    written = datetime.datetime.fromtimestamp(changed, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    evaluations = path / "evaluations" if training else None
    return Run(name, place, lines, items, texts, training, evaluations, written, notices)


def read_results(files: list[pathlib.Path]) -> tuple[dict[Key, Line], dict[Key, pathlib.Path]]:
    """The results of one model in one or more results.json, and the file of each.

    ValueError naming the files if they are of several models, if a result comes twice or if one is not complete.
    """
    lines: dict[Key, Line] = {}
    sources: dict[Key, pathlib.Path] = {}
    for file in files:
        values = read_json(file)
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file} is no results.json: it is not a list of results")
        for number, value in enumerate(values, start=1):
            missing = [name for name in Line._fields if not isinstance(value, dict) or name not in value]
            if missing:
                raise ValueError(f"{file}: result {number} lacks {', '.join(missing)}; main.py evaluate writes them")
            line = Line(*(value[name] for name in Line._fields))
            for name in Line._fields:
                of_text = name in ("task", "split", "metric", "model", "code")
                if not isinstance(value[name], str if of_text else int | float):
                    raise ValueError(f"{file}: result {number}: {name} is no {'text' if of_text else 'number'}: "
                                     f"{value[name]!r}")
            if line.task.startswith(MEAN_OF_TASKS):
                continue
            if line.key in lines:
                raise ValueError(f"{file}: result {number}, {' '.join(line.key)}, was already in {sources[line.key]}")
            lines[line.key], sources[line.key] = line, file
    models = {line.model: sources[key] for key, line in lines.items()}
    if len(models) > 1:
        raise ValueError("results of different models cannot be one run; give them as runs of their own: "
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
