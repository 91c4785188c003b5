"""A run that is killed or stopped and started again ends with the same bits as one that was not."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY, with_devices


def start(flags, workdir, devices=1):
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), "train", *flags, f"--workdir={workdir}"],
        cwd=REPOSITORY, env=with_devices(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_step(process, workdir, step):
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in metrics(workdir)):
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0][-3000:]}")


def losses(workdir):
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in metrics(workdir)]


@pytest.fixture(scope="module")
def uninterrupted(tiny_flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    process = start(tiny_flags, workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert [step for step, *_ in losses(workdir)] == list(range(1, 61))
    for line in metrics(workdir):
        shares = [line[name] for name in ("accuracy_at_1", "share_left_out")]
        cosines = [line[name] for name in ("positive_similarity", "hardest_negative_similarity")]
        assert all(0 <= share <= 1 for share in shares) and all(-1.01 < cosine < 1.01 for cosine in cosines)
    return workdir


def test_kill_at_any_moment(tiny_flags, tmp_path, uninterrupted):
    rng = random.Random()
    for step in (rng.randint(1, 10), rng.randint(12, 28)):
        process = start(tiny_flags, tmp_path)
        wait_for_step(process, tmp_path, step)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    process = start(tiny_flags, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert losses(tmp_path) == losses(uninterrupted)
    name = "export/model.safetensors"
    assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_sigterm_saves_and_exits_cleanly(tiny_flags, tmp_path, uninterrupted):
    process = start(tiny_flags, tmp_path)
    wait_for_step(process, tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output[-3000:]
    assert "the same command resumes" in output.splitlines()[-1]
    stopped = losses(tmp_path)[-1][0]
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir(), "the step at which it stopped is saved"
    process = start(tiny_flags, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert losses(tmp_path) == losses(uninterrupted)


def test_checkpoint_of_another_model_is_refused(tiny_flags, uninterrupted):
    flags = [flag for flag in tiny_flags if "encode_length" not in flag] + ["--encode_length=16", "--seed=1"]
    flags += ["--norandom_init"]  # tiny_model has no weights: they are not looked for
    process = start(flags, uninterrupted)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "model.max_length: the checkpoint has 32, this run has 16" in output
    assert "seed: the checkpoint has 0, this run has 1" in output
