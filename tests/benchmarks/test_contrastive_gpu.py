"""The benchmark of the GPU where there is none, and its report from numbers that are given."""

import json
import subprocess
import sys

import pytest

from benchmarks import contrastive_gpu
from tests.conftest import REPOSITORY, with_devices


@pytest.mark.parametrize("flags, message", [
    ([], "no Hopper GPU: the first device is 'cpu'"),
    (["--rows=256", "--columns=128"], "--columns=128 is below --rows=256"),
])
def test_it_says_why_it_cannot_run(flags, message):
    done = subprocess.run([sys.executable, "-m", "benchmarks.contrastive_gpu", *flags], cwd=REPOSITORY,
                          env=with_devices(1), capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1] and not done.stdout


def test_an_unknown_flag_is_a_usage_error():
    done = subprocess.run([sys.executable, "-m", "benchmarks.contrastive_gpu", "rows=1"], cwd=REPOSITORY,
                          env=with_devices(1), capture_output=True, text=True)
    assert done.returncode == 2 and "not a flag: 'rows=1'" in done.stderr


@pytest.mark.parametrize("changed, met", [
    ({}, True), ({"sums": 1.1}, False), ({"hopper": 5.2}, False), ({"bytes": 60}, False)])
def test_report(capsys, changed, met):
    """Forward at 0.96 of the product's rate, loss at 0.8 of the materialised form's time and 1/25 of its memory."""
    milliseconds = {"sums": 1.0, "plain product": 0.96, "hopper": 4.8, "xla, blocked": 9.0, "materialised": 6.0}
    seconds = {name: [changed.get(name, value) / 1e3] * 3 for name, value in milliseconds.items()}
    temporary_bytes = dict.fromkeys(seconds, 0) | {"hopper": changed.get("bytes", 40), "materialised": 1000}
    contrastive_gpu.report(contrastive_gpu.ContrastiveBenchmarkConfig(), seconds, temporary_bytes, {"hopper": 0.0})
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["name"] == "contrastive_gpu" and result["met"] == met and result["target"] == 0.85
    assert result["ratio"] == pytest.approx(seconds["hopper"][0] / 6e-3, abs=1e-3)
    assert result["forward_ratio"] == pytest.approx(0.96e-3 / seconds["sums"][0], abs=1e-3)
