import subprocess
import sys

import pytest

from benchmarks.harness import Ratio, paired_ratio
from benchmarks.peers import peer
from benchmarks.peers.peer import peer_python
from benchmarks.processes import WorkerProcess

DOUBLES = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    print(json.dumps({"answer": 2 * json.loads(line)["number"]}), flush=True)
"""


def test_a_worker_answers_each_order(tmp_path):
    worker = WorkerProcess([sys.executable, "-c", DOUBLES], tmp_path, "doubler")
    assert worker.ready == {"ready": True}
    assert [worker.ask(number=number)["answer"] for number in (3, 4)] == [6, 8]
    worker.close()


@pytest.mark.parametrize("number", ["undefined", {}])
def test_a_dead_worker_is_named_with_its_last_words(tmp_path, number):
    worker = WorkerProcess([sys.executable, "-c", DOUBLES.replace("2 *", "2.5 *")], tmp_path, "doubler")
    with pytest.raises(ValueError, match=r"(?s)the doubler process ended with status 1.*TypeError"):
        worker.ask(number=number)
    with pytest.raises(ValueError, match="ended with status 1"):
        worker.ask(number=1)


def test_a_worker_that_does_not_start(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)the broken process ended with status 1.*No module named 'nothing'"):
        WorkerProcess([sys.executable, "-c", "import nothing"], tmp_path, "broken")


def test_the_ratio_is_the_median_of_neighbours():
    assert paired_ratio([10.0, 4.0, 9.0], [5.0, 1.0, 3.0]) == Ratio(9.0, 3.0, 3.0, 2.0, 4.0)


def test_a_peer_python_that_is_not_there():
    with pytest.raises(ValueError, match="--peer_python=/nowhere/python is not an executable"):
        peer_python("/nowhere/python")


def test_the_peer_environment_is_made_once_and_completed_when_packages_are_added(tmp_path, monkeypatch):
    commands = []

    def run(command):
        commands.append(command[2])
        (tmp_path / ".venv-peer").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(peer, "REPOSITORY", tmp_path)
    monkeypatch.setattr(peer, "run", run)
    for expected in (["venv", "pip", "pip"], []):
        assert peer_python() == str(tmp_path / ".venv-peer" / "bin" / "python")
        assert commands == expected
        commands.clear()
    for expected in (["pip"], []):
        peer_python(installs=(["another"],))
        assert commands == expected
        commands.clear()
