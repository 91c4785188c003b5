"""The benchmark runs as a user runs it, at a small size."""

import json
import os
import sys

from tests.conftest import REPOSITORY


def test_contrastive_cpu(processes):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = processes.run(
        [sys.executable, "-m", "benchmarks.contrastive_cpu", "--rows=96", "--keys=160", "--width=32", "--repeats=2",
         "--threads=1"], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == "contrastive_cpu" and result["target"] == 0.9 and result["ratio"] > 0
    assert result["met"] == (result["ratio"] <= 0.9 and result["memory_ratio"] <= 0.05)
    assert result["one_way_met"] == (result["one_way_ratio"] <= 0.9 and result["one_way_memory_ratio"] <= 0.05)
    assert result["largest_difference"] < 1e-5
