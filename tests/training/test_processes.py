"""Two processes train what one does."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import REPOSITORY, with_devices


def run_processes(flags, workdir, processes, devices):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "main.py"), "train", *flags, f"--workdir={workdir}"]
    if processes > 1:
        command += [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}"]
    started = [
        subprocess.Popen([*command, f"--process_id={index}"], cwd=REPOSITORY, env=with_devices(devices),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for index in range(processes)
    ]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(workdir / "export" / "model.safetensors")


@pytest.mark.parametrize("mixture", ["example", "dataset"])
def test_two_processes_equal_one(tiny_flags, tmp_path, mixture):
    flags = [flag for flag in tiny_flags if "num_steps" not in flag]
    # A large epsilon: otherwise Adam divides small gradients by their rounding, and makes it large.
    flags += ["--num_steps=8", f"--mixture={mixture}", "--packing_blocks=4", "--adam_epsilon=1e-2",
              "--learning_rate=1e-2"]
    one = run_processes(flags, tmp_path / "one", processes=1, devices=1)
    two = run_processes(flags, tmp_path / "two", processes=2, devices=2)
    np.testing.assert_allclose(two[0], one[0], rtol=1e-5)
    for name, expected in one[1].items():
        error = np.abs(two[1][name] - expected).max() / max(np.abs(expected).max(), 1e-6)
        assert error < 1e-5, f"{name}: {error:.2e}"
