"""Two processes train what one does."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file


def read_run(workdir):
    """The losses and the exported tensors."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(workdir / "export" / "model.safetensors")


@pytest.mark.parametrize("mixture", ["example", "dataset"])
def test_two_processes_equal_one(tiny_flags, tmp_path, run_processes, mixture):
    flags = [flag for flag in tiny_flags if "num_steps" not in flag]
    # A large epsilon: otherwise Adam divides small gradients by their rounding, and makes it large.
    flags += ["--num_steps=8", f"--mixture={mixture}", "--packing_blocks=4", "--adam_epsilon=1e-2",
              "--learning_rate=1e-2"]
    run_processes("train", *flags, f"--workdir={tmp_path / 'one'}", processes=1, devices=1)
    run_processes("train", *flags, f"--workdir={tmp_path / 'two'}", processes=2, devices=2)
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    np.testing.assert_allclose(two[0], one[0], rtol=1e-5)
    for name, expected in one[1].items():
        error = np.abs(two[1][name] - expected).max() / max(np.abs(expected).max(), 1e-6)
        assert error < 1e-5, f"{name}: {error:.2e}"
