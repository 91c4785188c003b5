"""The benchmark of the GPU where there is none, and its report from numbers that are given."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import contrastive_gpu
from benchmarks.peers.peer import peer_workers
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
    ({}, True), ({"sums": 1.1}, False), ({"hopper": 5.2}, False), ({"bytes": 60}, False), ({"Inf-CL": 19.0}, False)])
def test_report(capsys, changed, met):
    """Forward at 0.96 of the product's rate, loss at 0.8 of the materialised form's time and 1/25 of its memory, and
    at 0.24 of Inf-CL's time."""
    milliseconds = {"sums": 1.0, "plain product": 0.96, "hopper": 4.8, "xla, blocked": 9.0, "materialised": 6.0,
                    "Inf-CL": 20.0}
    seconds = {name: [changed.get(name, value) / 1e3] * 3 for name, value in milliseconds.items()}
    temporary_bytes = dict.fromkeys(seconds, 0) | {
        "hopper": changed.get("bytes", 40), "materialised": 1000, "Inf-CL": 80}
    contrastive_gpu.report(contrastive_gpu.ContrastiveBenchmarkConfig(), seconds, temporary_bytes, {"hopper": 0.0}, "")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["name"] == "contrastive_gpu" and result["met"] == met and result["target"] == 0.85
    assert result["ratio"] == pytest.approx(seconds["hopper"][0] / 6e-3, abs=1e-3)
    assert result["forward_ratio"] == pytest.approx(0.96e-3 / seconds["sums"][0], abs=1e-3)
    assert result["inf_cl_ratio"] == pytest.approx(seconds["hopper"][0] / seconds["Inf-CL"][0], abs=1e-3)
    assert result["inf_cl_memory_ratio"] == temporary_bytes["hopper"] / 80 and "reason" not in result


def test_the_report_says_why_inf_cl_was_not_run(capsys):
    seconds = {"sums": [1e-3], "plain product": [1e-3], "hopper": [5e-3], "xla, blocked": [9e-3],
               "materialised": [6e-3]}
    temporary_bytes = dict.fromkeys(seconds, 0) | {"materialised": 1000}
    contrastive_gpu.report(contrastive_gpu.ContrastiveBenchmarkConfig(), seconds, temporary_bytes, {},
                           "Inf-CL could not be run: no torch")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["met"] is False and result["reason"] == "Inf-CL could not be run: no torch"
    assert "inf_cl_ratio" not in result and result["forward_ratio"] == 1.0  # the rest is met


def test_one_device_of_inf_cls_batch():
    """Its loss and gradients there, in plain jnp: b queries over N keys and b keys over N queries."""
    config = contrastive_gpu.ContrastiveBenchmarkConfig(rows=8, columns=24, width=16)
    queries, keys = jax.random.normal(jax.random.key(0), (2, config.columns, config.width))
    queries, keys = (array / jnp.linalg.norm(array, axis=1, keepdims=True) for array in (queries, keys))

    def loss(q, all_keys, k, all_queries):
        return sum(jnp.mean(jax.nn.logsumexp(20 * own @ others.T, axis=1) - 20 * jnp.sum(own * others[:8], axis=1))
                   for own, others in ((q, all_keys), (k, all_queries)))

    expected, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(queries[:8], keys, keys[:8], queries)
    found = contrastive_gpu.inf_cl_loss_and_norms(config, queries, keys)
    np.testing.assert_allclose(found, [expected, *[jnp.linalg.norm(each) for each in gradients]], rtol=1e-5)


def test_inf_cl_says_that_it_needs_a_gpu(peer):
    python = peer("result = sys.executable")  # has torch; no GPU is needed to see that there is none
    message = r"(?s)the Inf-CL process ended with status 1.*CUDA GPU only"
    with pytest.raises(ValueError, match=message), peer_workers(python, "inf_cl.py", {"Inf-CL": {}}):
        pass
