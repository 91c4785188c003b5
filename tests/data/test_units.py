"""prepare on several machines: a job array and Apache Beam write what one machine writes; locks; a worker that dies."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data.examples import NO_PROMPTS
from data.lock import only_prepare
from data.prepare import PrepareConfig, prepare
from data.shards import open_dataset, read_manifest
from data.units import Unit, of_task
from flags import Error
from tests.conftest import REPOSITORY
from tests.data.test_prepare import write_lines, write_tokenizer
from tests.data.test_prepare_stopped import child_processes, files_below

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird"]
SIZES = {"a.jsonl.gz": 400, "b.jsonl": 30, "deep/c.jsonl.gz": 900, "d.jsonl": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"), WORDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for name, size in SIZES.items():
        write_lines(folder / name, [[f"{'one ' * (1 + i % 9)}cat", f"dog {i} {name}"] for i in range(size)] + [b"[3]"])
    return folder


@pytest.fixture(scope="module")
def at_once(source, model, tmp_path_factory):
    """What one machine writes."""
    out = tmp_path_factory.mktemp("one") / "out"
    prepare(config_of(source, model, out))
    return files_below(out)


def config_of(source, model, out, **options) -> PrepareConfig:
    options = {"workers": 2, "records_per_shard": 350, "max_bad_share": 0.2} | options
    return PrepareConfig(str(source), str(model), str(out), **options)


def command_of(source, model, out, *flags: str) -> list[str]:
    return [sys.executable, "main.py", "prepare", f"--source_dir={source}", f"--tokenizer={model}", f"--data_dir={out}",
            "--workers=1", "--records_per_shard=350", "--max_bad_share=0.2", *flags]


def test_the_tasks_of_a_job_array_write_what_one_machine_writes(source, model, at_once, tmp_path, capsys):
    for task in (2, 0, 1):
        prepare(config_of(source, model, tmp_path, num_tasks=3, task_index=task, workers=1))
        errors = capsys.readouterr().err
        assert (tmp_path / "manifest.json").exists() == (task == 1)
        assert ("datasets of other tasks are not finished" in errors) == (task != 1)
    assert files_below(tmp_path) == at_once
    with pytest.raises(ValueError, match=f"{tmp_path} has no manifest.json"):
        (tmp_path / "manifest.json").unlink()
        read_manifest(tmp_path)
    shutil.rmtree(tmp_path / "deep")
    prepare(config_of(source, model, tmp_path))  # without a job array: what is missing, then the manifest
    assert files_below(tmp_path) == at_once


def test_tasks_that_run_at_once_make_one_folder(source, model, at_once, tmp_path):
    tasks = [subprocess.Popen(command_of(source, model, tmp_path, "--num_tasks=2", f"--task_index={task}"),
                              cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for task in (0, 1)]
    assert [task.wait() for task in tasks] == [0, 0]
    assert files_below(tmp_path) == at_once


def test_every_file_has_one_task(tmp_path):
    units = []
    for number, size in enumerate((500, 20, 20, 300, 180, 1, 0, 0)):
        (tmp_path / f"{number}").write_bytes(b"x" * size)
        units.append(Unit(f"{number}", tmp_path / f"{number}", tmp_path, "", False, "texts", None, NO_PROMPTS, 0, {}))
    tasks = [of_task(units, task, 3) for task in range(3)]
    assert sorted(unit.name for task in tasks for unit in task) == [unit.name for unit in units]
    assert [sum(unit.path.stat().st_size for unit in task) for task in tasks] == [500, 300, 221]
    assert sum(len(of_task(units, task, 99)) for task in range(99)) == len(units)


def test_wrong_flags(source, model, tmp_path):
    with pytest.raises(Error, match="--task_index=3 is not below --num_tasks=3"):
        prepare(config_of(source, model, tmp_path, num_tasks=3, task_index=3))
    with pytest.raises(Error, match="--runner=DirectRunner spreads the files itself: leave out --num_tasks=2"):
        prepare(config_of(source, model, tmp_path, num_tasks=2, runner="DirectRunner"))
    with pytest.raises(Error, match="there is no flag --worker: did you mean --workers"):
        prepare(config_of(source, model, tmp_path), ["--worker=3"])
    with pytest.raises(Error, match="Beam's flags need --runner"):
        prepare(config_of(source, model, tmp_path), ["--", "--direct_num_workers=2"])


def test_two_prepares_in_one_folder(source, model, at_once, tmp_path):
    """The same task, or another division of the files, is refused; another task of the same array is not."""
    here = rf"in use by another run, process {os.getpid()} on \S+ \(prepare-0-of-{{}}\.lock\)"
    with only_prepare(tmp_path, 0, 1), pytest.raises(ValueError, match=here.format(1)):
        prepare(config_of(source, model, tmp_path))
    with only_prepare(tmp_path, 0, 2):
        for num_tasks, task in ((2, 0), (1, 0), (3, 2)):
            with pytest.raises(ValueError, match=here.format(2)):
                prepare(config_of(source, model, tmp_path, num_tasks=num_tasks, task_index=task))
        with only_prepare(tmp_path, 1, 2):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "prepare-0-of-7.lock").write_text("of a process that was killed")
    (tmp_path / "tokenizer.left.partial").mkdir()
    prepare(config_of(source, model, tmp_path))
    assert files_below(tmp_path) == at_once and not (tmp_path / "tokenizer.left.partial").exists()


def test_a_worker_that_dies(source, model, tmp_path):
    """The command ends with the reason, finished files stay, and the same command completes the folder."""
    big = tmp_path / "source"
    shutil.copytree(source, big)
    write_lines(big / "big.jsonl", [[f"one cat {i}", f"two dogs {i}"] for i in range(60_000)])
    command, out = command_of(big, model, tmp_path / "out", "--workers=2"), tmp_path / "out"
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "a.jsonl.gz").exists():
        time.sleep(0.005)
    workers = [child for child in child_processes(process.pid) if b"spawn_main" in command_line(child)]
    os.kill(workers[0], signal.SIGKILL)
    last = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 1 and "one of 2 tokenising processes died" in last
    assert (out / "a.jsonl.gz" / "manifest.json").exists() and not (out / "manifest.json").exists()
    assert not list(out.glob("*.partial")) and not list(out.glob("*.lock"))
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert len(open_dataset(out, "big.jsonl")) == 60_000


def command_line(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def test_a_bad_file_stops_the_others(source, model, tmp_path):
    """The fault is behind the first block. Nothing half-written is left of the file or of one that was under way."""
    bad = tmp_path / "source"
    shutil.copytree(source, bad)
    write_lines(bad / "bad.jsonl", [["one cat " * 500, "two"]] * 400 + [["one"]] * 150)
    write_lines(bad / "good.jsonl", [["one cat " * 500, "two"]] * 4000)
    with pytest.raises(ValueError, match=r"bad\.jsonl: 150 of 550 lines are bad"):
        prepare(config_of(bad, model, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.partial")) and not (tmp_path / "out" / "good.jsonl").exists()


BEAM = ("--runner=DirectRunner", "--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")


def test_beam_writes_what_one_machine_writes(source, model, at_once, tmp_path):
    pytest.importorskip("apache_beam", reason="no Apache Beam: pip install '.[beam]'")
    out = tmp_path / "out"
    bad = shutil.copytree(source, tmp_path / "source")
    write_lines(bad / "z.jsonl", [["one", "two"]] * 3 + [["one"]] * 2)
    done = subprocess.run(command_of(bad, model, out, *BEAM), cwd=REPOSITORY, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "z.jsonl: 2 of 5 lines are bad" in last, done.stderr[-3000:]
    assert not list(out.rglob("*.error")) and not list(out.rglob("*.partial")) and not (out / "manifest.json").exists()
    inodes = {path: path.stat().st_ino for path in out.rglob("*.arrayrecord")}
    assert len(inodes) == 7
    done = subprocess.run(command_of(source, model, out, *BEAM), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_ino for path in inodes} == inodes  # finished files are not written again
    assert files_below(out) == at_once


def test_beam_refuses_wrong_flags(source, model, tmp_path):
    pytest.importorskip("apache_beam", reason="no Apache Beam: pip install '.[beam]'")
    with pytest.raises(Error, match=r"--runner=Bogus: Unexpected pipeline runner"):
        prepare(config_of(source, model, tmp_path, runner="Bogus"))
    with pytest.raises(Error, match=r"Beam's DirectRunner has no flag --bogus"):
        prepare(config_of(source, model, tmp_path, runner="DirectRunner"), ["--", "--bogus=2"])
    assert not list(tmp_path.iterdir())


def test_beam_that_is_not_installed(source, model, tmp_path, monkeypatch):
    for name in ("apache_beam", "apache_beam.options.pipeline_options"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Error, match=r"--runner=DirectRunner needs Apache Beam .*pip install '\.\[beam\]'"):
        prepare(config_of(source, model, tmp_path, runner="DirectRunner"))
