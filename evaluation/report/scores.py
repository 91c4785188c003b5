"""The scores of a report's runs side by side: 95 % intervals, paired differences to the first run, means.

A mean over tasks says which of them it lacks. Scores, intervals and differences are x 100. n = items of a task.
"""

import zlib
from typing import NamedTuple

import numpy as np

from evaluation.measures.bootstrap import Interval, Score, mean_score, percentile_interval, resampled, spearman_score
from evaluation.measures.correlation import average_ranks
from evaluation.report.curves import curves_of
from evaluation.report.runs import Key, Line, Run, read_details
from evaluation.tasks.heldout import inverse_ranks
from evaluation.tasks.sts import SEVEN

SPEARMAN = "cosine_spearman"
MEAN_OF_SEVEN = "mean of seven STS"
LOWER_IS_BETTER = ("mse",)  # endings of the names of such metrics
OUTLIERS = 5  # shown for each task and run
TOLERANCE = 1e-6  # between a score and the score of its items, x 100: both are float64 of the same numbers
ROUNDED = 1e-4  # the same for metrics.jsonl, which rounds scores to seven digits


class Difference(NamedTuple):
    value: float  # this run - the first run
    interval: Interval

    @property
    def is_clear(self) -> bool:
        """The interval excludes 0."""
        return not self.interval.low <= 0 <= self.interval.high


class Cell(NamedTuple):
    value: float
    n: int
    interval: Interval | None = None
    difference: Difference | None = None
    note: str = ""


class Row(NamedTuple):
    key: Key
    cells: list[Cell | None]  # one per run; None if it has no such score

    def best(self) -> list[int]:
        """The runs with the best value as shown; none if there is only one run, or if runs scored different items."""
        there = [(index, cell) for index, cell in enumerate(self.cells) if cell]
        if len(there) < 2 or len({(cell.n, cell.note) for _, cell in there}) > 1:
            return []
        choose = min if is_lower_better(self.key.metric) else max
        shown = {index: round(cell.value, decimals(self.key.metric)) for index, cell in there}
        return [index for index, value in shown.items() if value == choose(shown.values())]


class Comparison(NamedTuple):
    headlines: list[Row]  # one per task and split
    mean_of_seven: Row | None  # None without any STS score on the split test
    others: dict[str, list[Row]]  # task -> its parts and further metrics
    notices: list[str]  # what cannot be compared or resampled, and why


class Sample(NamedTuple):
    """A score with its resamples, all x 100."""

    value: float
    n: int
    values: np.ndarray | None  # [resamples]; None if the score cannot be computed from the items


def is_lower_better(metric: str) -> bool:
    return metric.partition(":")[0].endswith(LOWER_IS_BETTER)  # such as translation_mse:de of a training


def decimals(metric: str) -> int:
    return 4 if is_lower_better(metric) else 2


def compare(runs: list[Run], resamples: int) -> Comparison:
    """Compares every score of the runs, each of which has some, with the first run's."""
    notices: dict[str, None] = {}
    keys = dict.fromkeys(key for run in runs for key in run.lines)
    samples = [samples_of(run, resamples, notices) for run in runs]
    differing = {key: differing_items(runs, key, notices) for key in keys}
    rows = {key: Row(key, cells([of_run.get(key) for of_run in samples], differing[key])) for key in keys}

    headlines, others = [], {}
    for base, split in dict.fromkeys((key.base, key.split) for key in keys):
        of_task = [key for key in keys if (key.base, key.split) == (base, split)]
        headline = next((key for key in of_task if not key.part), None)
        if headline is None:
            metric = of_task[0].metric
            parts = [key for key in of_task if key.metric == metric]
            headlines.append(mean_of(Key(f"{base}, mean of parts", split, metric), parts, samples, differing, False))
        else:
            headlines.append(rows[headline])
        others.setdefault(base, []).extend(rows[key] for key in of_task if key != headline)
    seven = mean_of(Key(MEAN_OF_SEVEN, "test", SPEARMAN), [Key(task, "test", SPEARMAN) for task in SEVEN], samples,
                    differing, True)
    return Comparison(headlines, seven, {base: rows for base, rows in others.items() if rows}, list(notices))


def cells(samples: list[Sample | None], differing: list[bool], notes: list[str] | None = None) -> list[Cell | None]:
    """One cell per run, with its difference to the first run if both were scored on the same items."""
    first, made = samples[0], []
    for index, own in enumerate(samples):
        if own is None:
            made.append(None)
            continue
        interval = None if own.values is None else percentile_interval(own.values)
        difference = None
        resampled_both = first is not None and first.values is not None and own.values is not None
        if index and resampled_both and not differing[index]:
            difference = Difference(own.value - first.value, percentile_interval(own.values - first.values))
        note = notes[index] if notes else "not the items of the first run" if differing[index] else ""
        made.append(Cell(own.value, own.n, interval, difference, note))
    return made


def mean_of(
    key: Key, wanted: list[Key], samples: list[dict[Key, Sample]], differing: dict[Key, list[bool]], resample: bool
) -> Row | None:
    """Plain mean of the wanted scores; if some are missing, the mean of the others with a note that says so.

    Set `resample` for intervals; they assume that the scores' items are independent, as those of tasks (not languages).
    """
    means, notes, other = [], [], []
    for index, of_run in enumerate(samples):
        there = [of_run[one] for one in wanted if one in of_run]
        missing = [one.part or one.task for one in wanted if one not in of_run]
        lacks = f"{', '.join(missing[:8])}{f' and {len(missing) - 8} more' if missing[8:] else ''}"
        notes.append(f"mean of {len(there)} of {len(wanted)}: lacks {lacks}" if missing else "")
        other.append(notes[index] != notes[0] or any(differing[one][index] for one in wanted if one in of_run))
        values = [one.values for one in there] if resample else [None]
        means.append(Sample(
            float(np.mean([one.value for one in there])), sum(one.n for one in there),
            None if any(one is None for one in values) else np.mean(values, axis=0),
        ) if there else None)
    return Row(key, cells(means, other, notes)) if any(means) else None


def samples_of(run: Run, resamples: int, notices: dict[str, None]) -> dict[Key, Sample]:
    """Each score with its resamples. Each task has draws of its own (the seed), which all runs share."""
    samples: dict[Key, Sample] = {}
    for key in sorted(run.lines, key=lambda key: not key.part):  # parts first, as a mean may be over them
        line, seed = run.lines[key], zlib.crc32(f"{key.task} {key.split}".encode())
        values, problem = resampled_values(
            own_items(run, key), key.metric, line.value, line.n, TOLERANCE, resamples=resamples, seed=seed)
        values = mean_of_parts(line, samples) if values is None else values
        if values is None and problem:
            notices[f"{run.name}, {key.task} {key.metric}: no interval: {problem}"] = None
        samples[key] = Sample(line.value, line.n, values)
    return samples


def resampled_values(
    columns: dict[str, list], metric: str, value: float, n: int, tolerance: float, **options
) -> tuple[np.ndarray | None, str]:
    """([resamples], "") from a score's items; (None, why) if they contradict it; (None, "") if they lack it."""
    try:
        score, num_items = item_score(columns, metric, n)
        if score is None:
            return None, ""
        given = 100 * score(np.arange(num_items))
        if abs(given - value) > tolerance:
            return None, f"its items have the score {given:.4f}, not {value:.4f}"
        return 100 * resampled(score, num_items, **options), ""
    except ValueError as error:
        return None, str(error)


def own_items(run: Run, key: Key) -> dict[str, list]:
    return run.items.get((key.base, key.split, key.part), {})


def item_score(columns: dict[str, list], metric: str, n: int) -> tuple[Score | None, int]:
    """The function that computes the metric from rows of the items, and the number of rows; None if there is none.

    n is the number of items or of parts. Parts of equal length may have the same texts (languages), so their rows are
    drawn together.
    """
    if metric == SPEARMAN and {"cosine", "score"} <= columns.keys() and n == len(columns["cosine"]):
        return spearman_score(np.array(columns["cosine"]), np.array(columns["score"])), n
    if metric not in columns:
        return None, 0
    values = np.array(columns[metric], np.float64)
    parts, part_of, sizes = np.unique(columns.get("part", [""] * len(values)), return_inverse=True, return_counts=True)
    if n not in (len(values), len(parts)):
        return None, 0
    if len(set(sizes.tolist())) == 1:
        values = values[np.argsort(part_of, kind="stable")].reshape(len(parts), -1).mean(axis=0)
    elif n == len(parts):
        return None, 0
    return mean_score(values), len(values)


def mean_of_parts(line: Line, samples: dict[Key, Sample]) -> np.ndarray | None:
    """Resamples of a plain mean over the task's parts, each drawn separately; None if the score is no such mean."""
    wanted = (line.key.base, line.split, line.metric.removesuffix("_mean"))
    parts = [one for key, one in samples.items() if key.part and (key.base, key.split, key.metric) == wanted]
    if line.key.part or not parts or any(one.values is None for one in parts):
        return None
    is_mean = abs(np.mean([one.value for one in parts]) - line.value) <= TOLERANCE
    return np.mean([one.values for one in parts], axis=0) if is_mean else None


def differing_items(runs: list[Run], key: Key, notices: dict[str, None]) -> list[bool]:
    """For each run, whether it scored other items than the first run. Differences are added to `notices`."""
    differing = []
    for run in runs:
        reason = ""
        if key in run.lines and key in runs[0].lines:
            reason = difference_of_items(own_items(runs[0], key), own_items(run, key))
            numbers = runs[0].lines[key].n, run.lines[key].n
            if numbers[0] != numbers[1]:
                reason = f"n is {numbers[0]} and {numbers[1]}"
        if reason:
            notices[f"{key.task} ({key.split}): {runs[0].name} and {run.name} cannot be compared: {reason}"] = None
        differing.append(bool(reason))
    return differing


def difference_of_items(first: dict[str, list], second: dict[str, list]) -> str:
    """An empty text if both are scores of the same sentences or queries, else what differs."""
    for name in (name for name in first if name in second):
        own, other = first[name], second[name]
        if len(own) != len(other):
            return f"they have {len(own)} and {len(other)} items"
        is_given = name == "score" or (own and isinstance(own[0], str))
        if is_given and own != other:
            row = next(row for row, pair in enumerate(zip(own, other)) if pair[0] != pair[1])
            return f"{name} of item {row + 1} is {own[row]!r} and {other[row]!r}"
    return ""


class Progress(NamedTuple):
    """A score of a training, x 100 as in metrics.jsonl."""

    first: tuple[int, float]  # step, value
    best: tuple[int, float]
    last: tuple[int, float]
    cell: Cell  # of the last


def compare_trainings(runs: list[Run], resamples: int) -> tuple[dict[str, list[Progress | None]], list[str]]:
    """{score: its progress in each run}, with intervals and differences at the last step; and notices."""
    notices: dict[str, None] = {}
    points = [curves_of(run.training).scores for run in runs]
    progress: dict[str, list[Progress | None]] = {}
    for name in dict.fromkeys(name for of_run in points for name in of_run):
        samples, items = [], []
        for run, of_run in zip(runs, points):
            step, value = of_run.get(name, [(0, 0.0)])[-1]
            items.append(training_items(run, name, step) if name in of_run else {})
            metric = SPEARMAN if name == "sts_spearman" else name
            num_items = len(next(iter(items[-1].values()), ()))
            values, problem = resampled_values(items[-1], metric, value, num_items, ROUNDED, resamples=resamples)
            if problem:
                notices[f"{run.name}, {name} at step {step}: no interval: {problem}"] = None
            samples.append(Sample(value, num_items, values) if name in of_run else None)
        differing = [bool(difference_of_items(items[0], own)) for own in items]
        choose = min if is_lower_better(name) else max
        progress[name] = [
            Progress(of_run[name][0], choose(of_run[name], key=lambda point: point[1]), of_run[name][-1], cell)
            if cell else None for of_run, cell in zip(points, cells(samples, differing))
        ]
    return progress, list(notices)


def training_items(run: Run, name: str, step: int) -> dict[str, list]:
    """The details of a step for a score of metrics.jsonl, as columns like those of results.items.json.gz."""
    details = read_details(run, step)
    if name == "sts_spearman" and "sts_cosines" in details:
        return {"cosine": details["sts_cosines"].tolist(), "score": details["sts_human_scores"].tolist()}
    if name.startswith("heldout") and "heldout_ranks" in details:
        ranks = details["heldout_ranks"]
        found = ranks == 1 if name == "heldout_accuracy@1" else inverse_ranks(ranks)
        return {name: found.astype(float).tolist()}
    return {}


class Outlier(NamedTuple):
    row: int
    human_rank: int  # from 1, the most similar pair
    model_rank: int


def outliers(columns: dict[str, list], number: int) -> list[Outlier]:
    """The pairs whose ranks by human score and by the model's cosine differ most."""
    human, model = (average_ranks(-np.array(columns[name])) for name in ("score", "cosine"))
    worst = np.argsort(-np.abs(human - model), kind="stable")[:number]
    return [Outlier(int(row), round(human[row]), round(model[row])) for row in worst]


def is_sts(columns: dict[str, list]) -> bool:
    return {"sentence1", "sentence2", "score", "cosine"} <= columns.keys()
