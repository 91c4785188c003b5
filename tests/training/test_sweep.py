"""A sweep of tiny runs: what runs, what is skipped, what is refused, and the table."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from absl import flags

from tests.conftest import REPOSITORY, with_devices
from training.sweep import Processes, SweepConfig, plan_runs, summary, table

# Two steps of warm-up leave nothing of two steps: one run of the four fails.
GRID = ("--grid=num_steps:2,3", "--grid=warmup_steps:1,2", "--grid=lr:1e-3")
RUNS = [f"num_steps={steps},warmup_steps={warmup},learning_rate=1e-3" for steps in (2, 3) for warmup in (1, 2)]
FAILING = RUNS[1]
REQUIRED_FLAGS = ["--data_dir=d", "--init=m"]


@pytest.fixture(scope="module")
def sweep_flags(tiny_flags, tmp_path_factory):
    path = tmp_path_factory.mktemp("sts") / "sts.tsv"
    rows = [f"a small cat\t{other}\t{score}\tdev\n" for score, other in enumerate(
        ["the old river", "a fast road", "a large dog", "a large cat", "one small cat", "a small cat"])]
    path.write_text("sentence1\tsentence2\tscore\tsplit\n" + "".join(rows))
    return [*tiny_flags, f"--eval_sts={path}", "--eval_every=1"]


@pytest.fixture(scope="module")
def swept(run_main, sweep_flags, tmp_path_factory):
    """(workdir, finished process) of a sweep over four runs, one of which fails."""
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, run_main("sweep", *sweep_flags, *GRID, f"--workdir={workdir}", check=False)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_combination_runs_and_the_table_ranks_them(swept):
    workdir, done = swept
    assert done.returncode == 1, done.stderr[-3000:]
    assert all(f"run {number} of 4, {name}" in done.stderr for number, name in enumerate(RUNS, start=1))
    rows = json.loads((workdir / "sweep.json").read_text())
    assert {row["run"] for row in rows} == set(RUNS)
    for row in rows[:3]:
        evaluations = [line for line in metrics(workdir / row["run"]) if "sts_spearman" in line]
        best = max(evaluations, key=lambda line: line["sts_spearman"])
        assert (row["score"], row["best_step"]) == (best["sts_spearman"], best["step"])
        assert (row["status"], row["steps"]) == ("finished", int(row["values"]["num_steps"]))
        assert (workdir / row["run"] / "export" / "model.safetensors").exists()
    assert [row["score"] for row in rows[:3]] == sorted((row["score"] for row in rows[:3]), reverse=True)
    lines = [line.split("\t") for line in (workdir / "sweep.tsv").read_text().splitlines()]
    assert lines[0] == ["num_steps", "warmup_steps", "learning_rate", "sts_spearman", "best_step", "steps", "loss",
                        "status"]
    assert [line[3] for line in lines[1:4]] == [f"{row['score']:.4f}" for row in rows[:3]]
    assert [line.split() for line in done.stdout.splitlines()[-5:]] == lines


def test_a_failing_run_is_reported_and_the_others_run(swept):
    workdir, done = swept
    row = json.loads((workdir / "sweep.json").read_text())[-1]
    assert (row["run"], row["status"], row["score"]) == (FAILING, "failed", None)
    assert "warmup_steps=2 leaves nothing of num_steps=2 to decay over" in row["error"]
    assert f"run 2 of 4, {FAILING}: failed with status 2: main.py train: warmup_steps=2 leaves nothing" in done.stderr
    assert done.stderr.splitlines()[-1] == f"main.py sweep: 1 of 4 runs failed: {FAILING}: {row['error']}"


def test_the_same_sweep_skips_what_is_finished_and_other_flags_are_refused(swept, run_main, sweep_flags):
    workdir, first = swept
    finished = [workdir / name / "metrics.jsonl" for name in RUNS if name != FAILING]
    before = [path.stat().st_mtime_ns for path in finished]
    again = run_main("sweep", *sweep_flags, *GRID, f"--workdir={workdir}", check=False)
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert again.returncode == 1 and again.stderr.count(": finished before") == 3
    assert again.stdout.splitlines()[-5:] == first.stdout.splitlines()[-5:]

    other = run_main("sweep", *sweep_flags, *GRID, "--clip_norm=0.5", f"--workdir={workdir}", check=False)
    assert other.returncode == 1 and "run 1 of 4" not in other.stderr
    assert "clip_norm was 1.0 and is now 0.5" in other.stderr.splitlines()[-1]


def test_sigterm_saves_the_run_under_way_and_the_same_command_resumes(run_main, sweep_flags, tmp_path):
    arguments = ["sweep", *sweep_flags, "--grid=seed:0,1", f"--workdir={tmp_path}", "--eval_every=100",
                 "--num_steps=100000"]
    process = subprocess.Popen([sys.executable, str(REPOSITORY / "main.py"), *arguments], cwd=REPOSITORY,
                               env=with_devices(1), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "seed=0" / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not (path.exists() and '"loss"' in path.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors[-3000:]
    assert "stopped by SIGTERM in run 1 of 2, seed=0" in errors.splitlines()[-1]
    stopped = metrics(path.parent)[-1]["step"]
    assert (path.parent / "checkpoints" / str(stopped)).is_dir() and not (tmp_path / "seed=1").exists()
    [row] = json.loads((tmp_path / "sweep.json").read_text())
    assert (row["status"], row["steps"]) == ("stopped", stopped)

    arguments = [*(argument for argument in arguments if "grid" not in argument), "--grid=seed:0"]
    total = stopped + 4  # more than the warm-up; the rest of it would take its time
    done = run_main(*arguments, f"--num_steps={total}")
    assert f"{total}/{total}" in done.stderr and "resumed from" in done.stderr
    [row] = json.loads((tmp_path / "sweep.json").read_text())
    assert (row["status"], row["steps"]) == ("finished", total)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_as_sigterm(number):
    script = ("import signal, sys, time\n"
              "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', file=sys.stderr)))\n"
              "print('bar 1\\rbar 2', file=sys.stderr, flush=True)\n"
              "time.sleep(60)")
    previous = signal.signal(number, signal.SIG_DFL)  # a test run in the background ignores SIGINT
    try:
        with Processes() as processes:
            threading.Timer(1.0, lambda: os.kill(os.getpid(), number)).start()
            assert processes.run([sys.executable, "-c", script]) == (0, "saved")
            assert processes.stopped_by == number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, previous)


def test_each_run_has_its_places_and_the_grid_overrides():
    config = SweepConfig(workdir="w", grid=("lr:1e-4,3e-4", "init:some/model"))
    first, second = plan_runs(config, [*REQUIRED_FLAGS, "--learning_rate=1", "--checkpoint_dir=gs://bucket/runs"])
    assert (first.config.optimizer.learning_rate, second.config.optimizer.learning_rate) == (1e-4, 3e-4)
    assert first.name == "learning_rate=1e-4,init=some%2Fmodel"
    assert first.config.run.workdir == f"w/{first.name}" and f"--workdir=w/{first.name}" in first.arguments
    assert first.config.run.checkpoint_dir == f"gs://bucket/runs/{first.name}"
    assert first.config.model.init == "some/model"


@pytest.mark.parametrize("grid, others, message", [
    ((), [], "nothing to sweep over"),
    (("learning_rat:1",), [], "there is no flag --learning_rat"),
    (("lr:",), [], "--grid=lr:: expected FLAG:VALUE,VALUE"),
    (("lr",), [], "--grid=lr: expected FLAG:VALUE,VALUE"),
    (("lr:1e-4,,2e-4",), [], "no empty value"),
    (("lr:fast",), [], "--learning_rate=fast: could not convert string to float"),
    (("seed:0,1.5",), [], "--seed=1.5: invalid literal for int"),
    (("mixture:example,all",), [], "--mixture=all: value should be one of <example|dataset>"),
    (("workdir:a,b",), [], "each run has a workdir of its own"),
    (("checkpoint_dir:a,b",), [], "each run has a checkpoint_dir of its own"),
    (("lr:1", "learning_rate:2"), [], "a second list of values for --learning_rate"),
    (("lr:1e-4,0.0001",), [], "one run twice: learning_rate=1e-4 and learning_rate=0.0001"),
    (("lr:1",), ["--learning_rat=1"], "there is no flag --learning_rat: did you mean --learning_rate?"),
    (("lr:1",), ["stray"], "not a flag: 'stray'"),
])
def test_wrong_grids_and_flags(grid, others, message):
    with pytest.raises(flags.Error, match=re.escape(message)):
        plan_runs(SweepConfig(workdir="w", grid=grid), [*REQUIRED_FLAGS, *others])


@pytest.mark.parametrize("arguments, message", [
    (["--grid=lr:1", "--data_dir=d", "--workdir=w"], "--init is required"),
    (["--grid=lr:1", *REQUIRED_FLAGS], "--workdir is required"),
    (["--grid=lr:x", "--workdir=w", *REQUIRED_FLAGS], "could not convert string to float"),
    (["--command=embed", "--workdir=w"], "--command=embed: value should be one of"),
])
def test_usage_errors_exit_with_2(run_main, arguments, message):
    done = run_main("sweep", *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_flags_of_a_recipe_count(run_main, tmp_path):
    recipe = tmp_path / "r.flags"
    recipe.write_text("--init=m\n--grid=seed:1.5\n")
    done = run_main("sweep", f"--flagfile={recipe}", "--data_dir", "d", f"--workdir={tmp_path}", check=False)
    assert done.returncode == 2 and "--seed=1.5" in done.stderr, done.stderr


@pytest.mark.parametrize("select, best", [("", 0), ("heldout_mrr@10", 0), ("teacher_mse", 1)])
def test_the_best_step_is_that_of_the_score_that_selects(tmp_path, select, best):
    config = SweepConfig(command="distill", workdir=str(tmp_path), grid=("seed:0,1,2",))
    runs = plan_runs(config, [*REQUIRED_FLAGS, "--teacher=t", f"--select={select}"])
    for run in runs:
        run.workdir.mkdir()
    lines = [{"step": 0, "heldout_mrr@10": 9.0, "teacher_mse": 5.0}, {"step": 1, "loss": 2.5},
             {"step": 1, "heldout_mrr@10": 8.0, "teacher_mse": 4.0}]
    for run, offset in zip(runs[1:], (0, 1)):
        values = [{name: value + (name != "step") * offset for name, value in line.items()} for line in lines]
        (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
    rows = [summary(run, status, "") for run, status in zip(runs, ("failed", "finished", "stopped"))]
    assert [row["selected"] for row in rows[1:]] == 2 * [select or "heldout_mrr@10"]
    assert [row["best_step"] for row in rows] == [None, best, best]
    first, second = (["1", "9.0000", "5.0000", "0", "1", "2.5000", "finished"],
                     ["2", "10.0000", "6.0000", "0", "1", "3.5000", "stopped"])
    if best:
        first[1:4], second[1:4] = ["8.0000", "4.0000", "1"], ["9.0000", "5.0000", "1"]
    assert table(rows) == [
        ["seed", "heldout_mrr@10", "teacher_mse", "best_step", "steps", "loss", "status"],
        *((first, second) if select == "teacher_mse" else (second, first)),
        ["0", "-", "-", "-", "0", "-", "failed"],
    ]
