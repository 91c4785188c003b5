"""prepare killed and stopped by Ctrl-C: nothing half-written is taken for finished, and the same command goes on."""

import json
import os
import pathlib
import signal
import sys
import time

from data.shards import open_dataset, text_id
from tests.conftest import REPOSITORY
from tests.data.test_prepare import PAIRS, WORDS, run_prepare, write_lines, write_tokenizer


def source_and_command(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, list[str]]:
    """The folder to write files in, the folder that prepare writes, and the command."""
    source, out, model = tmp_path / "source", tmp_path / "out", write_tokenizer(tmp_path / "model", WORDS)
    return source, out, [sys.executable, "main.py", "prepare", f"--source_dir={source}", f"--tokenizer={model}",
                         f"--data_dir={out}", "--workers=2"]


def test_killed_midway_then_the_same_command_completes(tmp_path, processes):
    """kill -9 at three moments: nothing half-written is taken for finished, and no worker process survives."""
    source, out, command = source_and_command(tmp_path)
    sizes = {"a.jsonl": 5_000, "b.jsonl": 5_000, "c.jsonl": 90_000}  # c is some seconds' work, in several blocks
    for name, size in sizes.items():
        write_lines(source / name, [[f"one cat {name} {i}", f"two dogs {i}"] for i in range(size)])
    moments = [out / "a.jsonl.partial", out / "a.jsonl" / "manifest.json", out / "c.jsonl.partial"]
    for moment in moments:
        process = processes.Popen(command, cwd=REPOSITORY, stderr=processes.DEVNULL, stdout=processes.DEVNULL)
        while process.poll() is None and not moment.exists():
            time.sleep(0.005)
        workers = child_processes(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
        for manifest in out.glob("*.jsonl/manifest.json"):
            assert json.loads(manifest.read_text())["examples"] == sizes[manifest.parent.name]
        assert_end(workers)
    processes.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert not list(out.rglob("*.partial"))
    for name, size in sizes.items():
        reader = open_dataset(out, name)
        assert len(reader) == size
        assert reader.read([size - 1])[0].query.text_id == text_id(f"one cat {name} {size - 1}")
    run_prepare((source, tmp_path / "at_once"), tmp_path / "model")
    assert files_below(out) == files_below(tmp_path / "at_once")


def files_below(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def child_processes(pid: int) -> list[int]:
    return [int(child) for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children")  # of each thread
            for child in children.read_text().split()]


def assert_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 15
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{alive} outlive the process that started them"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_ctrl_c_ends_it_with_one_line_and_the_same_command_resumes(tmp_path, processes):
    source, out, command = source_and_command(tmp_path)
    write_lines(source / "a.jsonl", PAIRS)
    write_lines(source / "b.jsonl", [[f"one cat {i}", f"two dogs {i}"] for i in range(300_000)])
    for moment in (out / "tokenizer", out / "b.jsonl.partial"):
        process = processes.Popen(command, cwd=REPOSITORY, stderr=processes.PIPE, text=True, start_new_session=True)
        while process.poll() is None and not moment.exists():
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and "Traceback" not in errors
        assert errors.splitlines()[-1] == "main.py prepare: stopped by Ctrl-C"
    finished = (out / "a.jsonl" / "manifest.json").stat().st_ino
    done = processes.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert "(was finished)" in done.stdout and (out / "a.jsonl" / "manifest.json").stat().st_ino == finished
    assert len(open_dataset(out, "b.jsonl")) == 300_000
