"""Train with every combination of some flags' values, one run after the other, and rank the runs by score.

    python main.py sweep --flagfile=recipes/R.flags --grid=learning_rate:1e-4,3e-4 --grid=seed:0,1 --workdir=DIR ...

All other flags are those of the command that is run (python main.py train --help). Each run is a process of its own,
with the workdir DIR/learning_rate=1e-4,seed=0 and so on. Run the same sweep again, also with more values: it skips
finished runs, resumes the one that was interrupted and repeats failed ones. After Ctrl-C or
SIGTERM the current run saves itself first. DIR/sweep.json and DIR/sweep.tsv hold the table: for each run the scores of
the model that it exports.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import signal
import subprocess
import sys
from typing import Literal, NamedTuple

from absl import flags

from data.files import new_file, read_json, write_json
from flags import REQUIRED, Repeated, define_flags, flag, parse_flags, settings_of, values_of, with_values
from training.evaluators import LOWER_IS_BETTER, SELECTED
from training.metrics import read_metrics
from training.settings import DistillConfig, TrainConfig

CONFIGS = {"train": TrainConfig, "distill": DistillConfig}
SHORT_NAMES = {"lr": "learning_rate"}
PLACES = ("workdir", "checkpoint_dir")  # each run has its own, below the one that the flag names
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESUMABLE = "the same command resumes"  # a stopped run prints this, and exits with 0 like a finished one
MAIN = pathlib.Path(__file__).resolve().parent.parent / "main.py"


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    command: Literal["train", "distill"] = flag("train", "command that is run with each combination")
    grid: Repeated = flag((), "FLAG:VALUE,VALUE,...: a flag of the command and its values (lr is short for "
                              "learning_rate). Repeat it for more flags: every combination is run")
    workdir: str = flag(REQUIRED, "folder of the sweep: a workdir for each run, sweep.json and sweep.tsv")


class Run(NamedTuple):
    name: str  # "learning_rate=1e-4,seed=0": its folder in the sweep's
    values: dict[str, str]  # of the flags in the grid
    arguments: list[str]  # flags of its command
    config: TrainConfig  # what they mean

    @property
    def workdir(self) -> pathlib.Path:
        return pathlib.Path(self.config.run.workdir)


def sweep(config: SweepConfig, arguments: list[str]) -> int:
    """Runs what is not finished. Returns 0 if no run failed, 1 if some did, 128 + its number if a signal stopped it.

    Raises, before the first run: flags.Error if a run's flags are wrong, ValueError if a run has finished with others.
    """
    runs = plan_runs(config, arguments)
    done = [is_finished(run) for run in runs]
    folder, rows = pathlib.Path(config.workdir), []
    folder.mkdir(parents=True, exist_ok=True)
    with Processes() as processes:
        for number, (run, was_done) in enumerate(zip(runs, done), start=1):
            title = f"run {number} of {len(runs)}, {run.name}"
            print(f"{title}{': finished before' if was_done else ''}", file=sys.stderr, flush=True)
            status, error = ("finished", "") if was_done else execute(config.command, run, processes)
            if error:
                print(f"{title}: failed with {error}", file=sys.stderr, flush=True)
            rows.append(summary(run, status, error))
            write_tables(folder, rows)
            if processes.stopped_by:
                print(f"main.py sweep: stopped by {processes.stopped_by.name} in {title}; the same command resumes",
                      file=sys.stderr)
                return 128 + processes.stopped_by
    print("\n".join(aligned(table(rows))))
    failed = [f"{row['run']}: {row['error']}" for row in rows if row["status"] == "failed"]
    if failed:
        print(f"main.py sweep: {len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse_grid(grid: tuple[str, ...], names: set[str]) -> dict[str, list[str]]:
    """{flag: values} of --grid=FLAG:VALUE,VALUE,...; flags.Error if it has another form or no such flag."""
    values = {}
    for text in grid:
        name, _, listed = text.partition(":")
        name = SHORT_NAMES.get(name, name)
        if not all(listed.split(",")):
            raise flags.Error(f"--grid={text}: expected FLAG:VALUE,VALUE,... and no empty value")
        if name in PLACES:
            raise flags.Error(f"--grid={text}: each run has a {name} of its own, below --{name}")
        if name not in names:
            raise flags.Error(f"--grid={text}: there is no flag --{name}")
        if name in values:
            raise flags.Error(f"--grid={text}: a second list of values for --{name}")
        values[name] = listed.split(",")
    if not values:
        raise flags.Error("nothing to sweep over: give --grid=FLAG:VALUE,VALUE,...")
    return values


def plan_runs(config: SweepConfig, arguments: list[str]) -> list[Run]:
    """A run for each combination, the last flag's values varying fastest; raises flags.Error if one has wrong flags."""
    grid = parse_grid(config.grid, {setting.name for setting in settings_of(CONFIGS[config.command])})
    runs: dict[TrainConfig, Run] = {}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination))
        name = ",".join(f"{flag_name}={value}" for flag_name, value in values.items()).replace("/", "%2F")
        chosen = [*arguments, *(f"--{flag_name}={value}" for flag_name, value in values.items())]
        settings = read_flags(config.command, [*chosen, f"--workdir={config.workdir}"])
        if settings in runs:
            raise flags.Error(f"--grid has one run twice: {runs[settings].name} and {name}")
        places = {place: f"{folder}/{name}" for place in PLACES if (folder := values_of(settings)[place])}
        chosen += [f"--{place}={folder}" for place, folder in places.items()]
        runs[settings] = Run(name, values, chosen, with_values(settings, **places))
    return list(runs.values())


def read_flags(command: str, arguments: list[str]) -> TrainConfig:
    """The command's configuration, as main.py would read it."""
    flag_values = flags.FlagValues()
    define_flags(CONFIGS[command], flag_values)
    return parse_flags(CONFIGS[command], [f"main.py {command}", *arguments], flag_values)[0]


def is_finished(run: Run) -> bool:
    """Whether a sweep has finished the run before; ValueError if it did so with other flags."""
    if not finished_file(run).exists():
        return False
    recorded, current = read_json(finished_file(run)), flags_record(run)
    differences = [
        f"{name} was {value!r} and is now {current[name]!r}"
        for name, value in recorded.items() if name in current and value != current[name]
    ]
    if differences:
        raise ValueError(f"{run.workdir} is a finished run with other flags: {'; '.join(differences)}. "
                         "Use another --workdir, or delete it")
    return True


def finished_file(run: Run) -> pathlib.Path:
    """Holds a finished run's flags. No step tells that a run is finished: it may end early (--patience_epochs)."""
    return run.workdir / "finished.json"


def flags_record(run: Run) -> dict:
    """The run's flags as JSON gives them back, without the places, which may move."""
    values = json.loads(json.dumps(values_of(run.config)))
    return {name: value for name, value in values.items() if name not in PLACES}


def execute(command: str, run: Run, processes: "Processes") -> tuple[str, str]:
    """Runs the command until it is finished, stopped or failed: that word, and what a failure says."""
    status, last_line = processes.run([sys.executable, str(MAIN), command, *run.arguments])
    if status and not processes.stopped_by:
        return "failed", f"status {status}: {last_line}"
    if status or RESUMABLE in last_line:
        return "stopped", ""
    write_json(finished_file(run), flags_record(run))
    return "finished", ""


class Processes:
    """Runs one process at a time; within the context, a signal to end is passed to it as SIGTERM, on which it saves."""

    def __enter__(self):
        self.stopped_by: signal.Signals | None = None
        self._process: subprocess.Popen | None = None
        ours = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
        self._previous = {number: signal.signal(number, self._stop) for number in ours}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number, _):
        self.stopped_by = signal.Signals(number)
        if self._process is not None:
            self._process.terminate()

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """(exit status, last line of stderr) of a process whose stderr is shown while it runs."""
        # A process group of its own: Ctrl-C reaches only us, and we ask the process to end in the way that saves.
        with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0) as process:
            self._process = process
            if self.stopped_by:  # between two runs, or before it had a name
                process.terminate()
            tail = b""
            while chunk := process.stderr.read1():
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
                tail = (tail + chunk)[-4096:]
        self._process = None
        lines = tail.decode(errors="replace").replace("\r", "\n").strip().splitlines()
        return process.returncode, lines[-1] if lines else ""


def summary(run: Run, status: str, error: str) -> dict:
    """A run's row of sweep.json: where it stands, and its scores at the step whose model it exports."""
    lines = read_metrics(run.workdir)
    losses = [line["loss"] for line in lines if "loss" in line]
    measured = [name for name in SELECTED if any(name in line for line in lines)]
    selected = run.config.evaluation.select or next(iter(measured), None)
    evaluations = [line for line in lines if selected in line]
    best = min(evaluations, key=lambda line: rank_value(selected, line[selected]), default={})
    return {
        "run": run.name, "values": run.values, "status": status, "error": error,
        "selected": selected, "score": best.get(selected), "best_step": best.get("step"),
        "scores": {name: value for name, value in best.items() if name != "step"},
        "steps": lines[-1]["step"] if lines else 0, "loss": losses[-1] if losses else None,
    }


def rank_value(name: str, score: float | None) -> float:
    """The smaller, the better; a run without a score is last."""
    return math.inf if score is None else score if name in LOWER_IS_BETTER else -score


def ranked(rows: list[dict]) -> list[dict]:
    """Best score first; runs without one last, in the order of the grid."""
    return sorted(rows, key=lambda row: rank_value(row["selected"], row["score"]))


def table(rows: list[dict]) -> list[list[str]]:
    """Header and rows: the grid's flags, every score that a run has, best_step, steps, loss and status."""
    names = list(rows[0]["values"])
    scored = {name for row in rows for name in row["scores"]}
    scores = [name for name in SELECTED if name in scored] + sorted(scored.difference(SELECTED))
    columns = ["best_step", "steps", "loss", "status"]
    lines = [[*names, *scores, *columns]]
    for row in ranked(rows):
        cells = [row["scores"].get(name) for name in scores] + [row[name] for name in columns]
        lines.append([*row["values"].values(), *map(as_text, cells)])
    return lines


def as_text(value: float | int | str | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]


def write_tables(folder: pathlib.Path, rows: list[dict]) -> None:
    with new_file(folder / "sweep.json") as file:
        file.write((json.dumps(ranked(rows), indent=1) + "\n").encode())
    with new_file(folder / "sweep.tsv") as file:
        file.writelines(("\t".join(line) + "\n").encode() for line in table(rows))
