"""`main.py mine` as a process: help, exit statuses, Ctrl-C, kill -9, a full disk, two runs in one folder."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from data.mine.sources import SOURCES
from tests.conftest import REPOSITORY
from tests.data.mine.test_mine import files_of
from tests.data.mine.test_reddit import comment, write


@pytest.fixture(scope="module")
def months(tmp_path_factory):
    """Three months of 20,000 comments each: a second or two of work."""
    folder = tmp_path_factory.mktemp("months")
    for month in (1, 2, 3):
        write(folder / f"RC_2015-{month:02d}.jsonl", [
            comment(f"{month}x{i}", f"{month}x{i - 1}" if i % 5 else None, f"comment {i} of {month}", f"t{i // 5}")
            for i in range(20_000)])
    return folder


def start(processes, months, out, *more, **options):
    return processes.Popen(
        [sys.executable, "main.py", "mine", "reddit", f"--input={months}", f"--output={out}", *more], cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)


def workers_of(process):
    """The ids of the processes that mine, once one has begun a part."""
    def partial():
        entries = os.scandir(folder) if folder.exists() else ()
        return {each.inode() for each in entries if each.name.endswith(".partial")}

    folder = pathlib.Path(process.args[5].removeprefix("--output=")) / ".parts"
    before = partial()  # of an earlier run
    while process.poll() is None and not partial() - before:
        time.sleep(0.005)
    found = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(each) for each in found if "spawn_main" in pathlib.Path(f"/proc/{each}/cmdline").read_text()]


def test_help(run_main):
    text = run_main("mine", "--help").stdout
    assert all(f"\n  {source.name} " in text and source.expects in text for source in SOURCES)
    text = run_main("mine", "stackexchange", "--help").stdout
    assert "--min_title=20" in text and "--input=   (required)" in text and "--min_length" not in text


@pytest.mark.parametrize("arguments, message", [
    ([], "name a source first: one of stackexchange"), (["redit"], "no source 'redit': did you mean reddit?"),
    (["--input=x"], "name a source first"), (["reddit"], "--input and --output are required"),
    (["reddit", "--input=x", "--output=y", "--min_lenght=3"], "no flag --min_lenght: did you mean --min_length?"),
    (["reddit", "--input=x", "--output=y", "--memory=1"], "at least 16"),
])
def test_usage_errors(run_main, arguments, message):
    done = run_main("mine", *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


def test_errors_are_one_line(run_main, tmp_path):
    done = run_main("mine", "reddit", "--input=nowhere", f"--output={tmp_path}/out", check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("main.py mine reddit: --input=nowhere: ")
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_killed_runs_go_on(processes, months, tmp_path, run_main):
    """kill -9 while parts are written, then a worker killed, then Ctrl-C: the same command gives the same bytes."""
    run_main("mine", "reddit", f"--input={months}", f"--output={tmp_path}/whole", "--workers=1")
    out = tmp_path / "out"
    process = start(processes, months, out, "--workers=2")
    workers = workers_of(process)
    while not list(out.glob(".parts/scatter-*/part.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    deadline = time.time() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert workers and not [pid for pid in workers if os.path.exists(f"/proc/{pid}")], "workers outlive a killed run"
    finished = {path: path.stat().st_mtime_ns for path in out.glob(".parts/scatter-*/part.json")}
    assert finished and not (out / "manifest.json").exists()

    process = start(processes, months, out, "--workers=2")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "mining processes died" in errors.splitlines()[-1]

    process = start(processes, months, out, "--workers=2")
    for pid in workers_of(process):
        os.kill(pid, signal.SIGSTOP)  # a unit that takes hours
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines()[-1] == "main.py mine reddit: stopped by Ctrl-C"
    assert "Traceback" not in errors
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in finished.items())

    run_main("mine", "reddit", f"--input={months}", f"--output={out}", "--workers=2")
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_full_disk_is_named(processes, months, tmp_path, run_main):
    """Files of at most 30 kB, which stand for a full disk; then the same command with room."""
    limit = 30_000
    process = start(processes, months, tmp_path / "out", "--workers=1", preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot write in {tmp_path}/out: " in errors.splitlines()[-1] and "Make room" in errors.splitlines()[-1]
    assert not list((tmp_path / "out").glob(".parts/*.partial"))
    run_main("mine", "reddit", f"--input={months}", f"--output={tmp_path}/out", "--workers=1")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["outputs"]


def test_two_runs_in_one_folder(processes, months, tmp_path, run_main):
    process = start(processes, months, tmp_path / "out", "--workers=1")
    while not (tmp_path / "out" / ".parts" / "lock").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    done = run_main("mine", "reddit", f"--input={months}", f"--output={tmp_path}/out", check=False)
    os.kill(process.pid, signal.SIGCONT)
    assert done.returncode == 1 and "is in use by another run, process " in done.stderr.splitlines()[-1]
    process.communicate(timeout=60)
    assert process.returncode == 0
