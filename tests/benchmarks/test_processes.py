"""However a benchmark ends, its workers end, and what these have started."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.processes import Child, run
from tests.conftest import REPOSITORY

# A worker that starts a child of its own and ignores polite signals; a benchmark that waits for it, or for main.py.
WORKER = """
import json, os, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(json.dumps({"pids": [os.getpid(), child.pid]}), flush=True)
time.sleep(300)
"""
BENCHMARK = """
import pathlib, signal, subprocess, sys, tempfile
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a background job may inherit that they are ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from benchmarks.processes import WorkerProcess, run, stop_on_signals

stop_on_signals("a benchmark")
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as temporary:
    if sys.argv[1] == "worker":
        worker = WorkerProcess([sys.executable, "-c", sys.argv[3]], pathlib.Path(temporary), "sleeper")
        print(*worker.ready["pids"], flush=True)
        try:
            worker.ask(order="never answered")
        finally:
            worker.close()
    else:
        run([sys.executable, "-c", sys.argv[3]])
"""


def is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("what", ["worker", "command"])
@pytest.mark.parametrize("number, status", [
    (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP), (signal.SIGINT, None),
    (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_outlives_a_benchmark_that_is_killed(tmp_path, what, number, status, processes):
    benchmark = processes.Popen([sys.executable, "-c", BENCHMARK, what, str(tmp_path), WORKER], cwd=REPOSITORY,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = [int(word) for word in re.findall(r"\d+", benchmark.stdout.readline())]
    assert len(pids) == 2 and all(map(is_running, pids))
    benchmark.send_signal(number)
    benchmark.wait(timeout=20)
    assert wait_until(lambda: not any(map(is_running, pids)))
    assert status is None or benchmark.returncode == status
    if number in (signal.SIGTERM, signal.SIGHUP):
        assert f"a benchmark: stopped by {number.name}" in benchmark.stderr.read()
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())  # its temporary folder is gone


def test_a_command_that_ends_by_itself_gives_its_output_and_status():
    done = run([sys.executable, "-c", "import sys; print(input()); sys.exit(3)"], text=True, stdout=subprocess.PIPE,
               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 1 and "EOFError" in done.stderr
    done = run([sys.executable, "-c", "import sys; print('out'); sys.exit(3)"], text=True, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, "out\n")


def test_what_a_child_leaves_running_is_killed_with_it():
    child = Child([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in re.findall(r"\d+", child.stdout.readline())]
    child.end()
    child.end()
    assert wait_until(lambda: not any(map(is_running, pids)))
