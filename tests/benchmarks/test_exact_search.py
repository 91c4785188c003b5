"""The benchmark runs as a user runs it, at a small size."""

import json
import os
import subprocess
import sys

from tests.conftest import REPOSITORY


def test_exact_search(peer):
    python = os.environ.get("ALLPAIRS_PEER_PYTHON", str(REPOSITORY / ".venv-peer" / "bin" / "python"))
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.exact_search", "--documents=700", "--fewer_documents=300", "--width=16",
         "--queries=20", "--k=7", "--repeats=1", "--threads=1", f"--peer_python={python}"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == "exact_search" and result["target"] == 2.0 and result["ratio"] > 0
    assert result["largest_difference"] < 1e-5 and result["same_documents"] > 0.99
    assert result["met"] == (result["ratio"] >= 2.0 and result["memory_growth"] <= 1.1)
    assert set(result["peak_bytes"]) == {"ours", "ours_fewer", "peer"} and min(result["peak_bytes"].values()) > 0
