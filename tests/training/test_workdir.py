"""A workdir belongs to one run: the lock, the export, what is there already, Ctrl-C."""

import os
import signal
import time

import pytest

from data.files import WRITTEN, check_replaceable, foreign_files, new_folder
from tests.training.test_resume import metrics, start, wait_for_step


@pytest.fixture
def short_flags(tiny_flags):
    return [*tiny_flags, "--num_steps=4", "--warmup_steps=1"]


def test_only_what_a_run_wrote_is_replaced(tmp_path):
    export = tmp_path / "export"
    for text in ("first", "second"):
        with new_folder(export, replace=True) as folder:
            (folder / "model.txt").write_text(text)
    assert foreign_files(export) == [] and (export / "model.txt").read_text() == "second"
    (export / "notes").mkdir()
    (export / "notes" / "mine.txt").write_text("keep")
    assert foreign_files(export) == ["notes/mine.txt"]
    with pytest.raises(ValueError, match=r"notes/mine\.txt"):
        check_replaceable(export)
    with new_folder(export, replace=True) as folder:  # a file that came while the run was under way
        (folder / "model.txt").write_text("third")
    assert (export / "notes" / "mine.txt").read_text() == "keep" and (export / "model.txt").read_text() == "third"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "export").symlink_to(tmp_path / "elsewhere")
    for text in ("first", "second"):
        with new_folder(tmp_path / "export", replace=True) as folder:
            (folder / "model.txt").write_text(text)
    assert (tmp_path / "export").is_symlink()
    assert (tmp_path / "elsewhere" / "model.txt").read_text() == "second"


@pytest.mark.parametrize("name, message", [
    ("export/thesis.txt", "thesis.txt"), ("metrics.jsonl", "metrics.jsonl:1: not a line of metrics"),
])
def test_files_that_are_not_ours_are_refused_before_anything_is_loaded(run_main, short_flags, tmp_path, name, message):
    (tmp_path / "export").mkdir()
    (tmp_path / name).write_text("years of work\n")
    done = run_main("train", *short_flags, "--init=nowhere/at/all", f"--workdir={tmp_path}", check=False)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
    assert (tmp_path / name).read_text() == "years of work\n"
    assert sorted(os.listdir(tmp_path)) == sorted({"export", name.split("/")[0]})


def test_a_finished_run_exports_again(run_main, short_flags, tmp_path):
    flags = [*short_flags, f"--workdir={tmp_path}"]
    run_main("train", *flags)
    weights = (tmp_path / "export" / "model.safetensors").read_bytes()
    assert WRITTEN in os.listdir(tmp_path / "export")
    for path in sorted((tmp_path / "export").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "export").rmdir()
    run_main("train", *flags)
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == weights


def test_a_second_run_in_a_workdir_is_refused(run_main, tiny_flags, tmp_path):
    process = start([*tiny_flags, "--num_steps=100000"], tmp_path)
    try:
        wait_for_step(process, tmp_path, 2)
        done = run_main("train", *tiny_flags, f"--workdir={tmp_path}", check=False)
        assert done.returncode == 1
        assert f"in use by another run, process {process.pid} on {os.uname().nodename}" in done.stderr.splitlines()[-1]
    finally:
        process.kill()
        process.wait()
    run_main("train", *tiny_flags, "--num_steps=10", f"--workdir={tmp_path}")  # the lock died with its process


def test_ctrl_c_saves_and_the_same_command_resumes(run_main, tiny_flags, tmp_path):
    process = start([*tiny_flags, "--num_steps=100000", "--checkpoint_every=0"], tmp_path)
    wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "Traceback" not in errors
    assert errors.splitlines()[-1] == "stopped by Ctrl-C; the last step is saved: the same command resumes"
    reached = metrics(tmp_path)[-1]["step"]
    run_main("train", *tiny_flags, f"--num_steps={reached + 2}", f"--workdir={tmp_path}")
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == list(range(1, reached + 3))


def test_a_second_ctrl_c_ends_the_run_at_once(tiny_flags, tmp_path):
    process = start([*tiny_flags, "--num_steps=100000"], tmp_path)
    wait_for_step(process, tmp_path, 1)
    deadline = time.time() + 30
    while process.poll() is None and time.time() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    errors = process.communicate(timeout=60)[0]
    assert process.returncode in (0, 130) and "Traceback" not in errors  # 0: it had saved and ended in between
