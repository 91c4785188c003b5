"""Two processes train what one does, in every layout; a run goes on under another layout and number of processes."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file


def read_run(workdir):
    """The losses by step (the last, if a step ran twice), the scores by step, and the exported tensors."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    scores = {line["step"]: line["heldout_mrr@10"] for line in lines if "heldout_mrr@10" in line}
    return losses, scores, load_file(workdir / "export" / "model.safetensors")


def assert_same_run(actual, expected):
    assert actual[0].keys() == expected[0].keys() and actual[1].keys() == expected[1].keys()
    np.testing.assert_allclose(list(actual[0].values()), list(expected[0].values()), rtol=1e-5)
    np.testing.assert_allclose(list(actual[1].values()), list(expected[1].values()), atol=0.5)
    for name, tensor in expected[2].items():
        error = np.abs(actual[2][name] - tensor).max() / max(np.abs(tensor).max(), 1e-6)
        assert error < 1e-5, f"{name}: {error:.2e}"


@pytest.mark.parametrize("mixture, layout", [
    ("example", ["--shard_state=optimizer", "--shard_devices=2"]), ("dataset", ["--shard_state=parameters"])])
def test_two_processes_equal_one(tiny_flags, tiny_data, tmp_path, run_processes, mixture, layout):
    flags = [flag for flag in tiny_flags if "num_steps" not in flag and "checkpoint_every" not in flag]
    # A large epsilon: otherwise Adam divides small gradients by their rounding, and makes it large.
    flags += ["--num_steps=8", f"--mixture={mixture}", "--packing_blocks=4", "--adam_epsilon=1e-2",
              "--learning_rate=1e-2", "--checkpoint_every=4", "--eval_every=4",
              f"--eval_pairs={tiny_data.parent / 'source' / 'pairs.jsonl.gz'}"]
    run_processes("train", *flags, f"--workdir={tmp_path / 'one'}", processes=1, devices=1)
    run_processes("train", *flags, *layout, f"--workdir={tmp_path / 'two'}", processes=2, devices=2)
    one = read_run(tmp_path / "one")
    assert_same_run(read_run(tmp_path / "two"), one)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "8")  # it goes on from step 4: whole, in one process
    run_processes("train", *flags, f"--workdir={tmp_path / 'two'}", processes=1, devices=2)
    assert_same_run(read_run(tmp_path / "two"), one)
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "8")  # and the other way round
    run_processes("train", *flags, *layout, f"--workdir={tmp_path / 'one'}", processes=2, devices=2)
    assert_same_run(read_run(tmp_path / "one"), one)
