"""Seconds and memory of our exact search beside sentence_transformers.util.semantic_search: same arrays and threads.

    python -m benchmarks.exact_search [--peer_python=PYTHON]

The corpus is a file of random unit vectors. Both sides read it and find the k nearest vectors of each query, in
float32. Ours reads it window by window, like evaluation/tasks/retrieval.py. The peer's function takes it whole; it is
given the inner product, so that it does not normalise again. Both take turns; the first repetition, in which ours
compiles, does not count. Memory is the peak of a separate process above what it held before its first search. Ours is
also measured with a corpus of --fewer_documents, to show that it does not grow with the corpus.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import PeerBenchmarkConfig, paired_ratio, print_result, run_benchmark
from benchmarks.machine import describe_machine, use_cpu
from benchmarks.peers.peer import REPOSITORY, peer_python, peer_workers
from benchmarks.processes import WorkerProcess
from flags import flag

TARGET = 2.0
LARGEST_GROWTH = 1.1  # of our memory, from the smaller corpus to the larger one
LARGEST_DIFFERENCE = 1e-5  # of a score
ROWS_AT_ONCE = 65536  # drawn and written


@dataclasses.dataclass(frozen=True)
class SearchBenchmarkConfig(PeerBenchmarkConfig):
    documents: int = flag(1_000_000, "documents of the corpus", minimum=1)
    fewer_documents: int = flag(250_000, "documents of the corpus that memory is compared with", minimum=1)
    width: int = flag(384, "embedding width", minimum=1)
    queries: int = flag(1000, "queries", minimum=1)
    k: int = flag(100, "documents found for each query", minimum=1)
    repeats: int = flag(3, "repetitions that count", minimum=1)


def write_unit_vectors(path: pathlib.Path, rows: int, width: int, seed: int) -> None:
    """Writes [rows, width] float32 as .npy, without holding all of it in memory."""
    generator = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    for first in range(0, rows, ROWS_AT_ONCE):
        part = generator.standard_normal((min(ROWS_AT_ONCE, rows - first), width), np.float32)
        array[first:first + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)


def benchmark(config: SearchBenchmarkConfig) -> None:
    if not config.k <= config.fewer_documents <= config.documents:
        raise ValueError(f"--k={config.k}, --fewer_documents={config.fewer_documents} and --documents="
                         f"{config.documents} must not fall")
    use_cpu(config.threads)
    python = peer_python(config.peer_python)
    with tempfile.TemporaryDirectory() as temporary:
        files = {name: pathlib.Path(temporary, f"{name}.npy") for name in ("corpus", "queries")}
        write_unit_vectors(files["corpus"], config.documents, config.width, config.seed)
        write_unit_vectors(files["queries"], config.queries, config.width, config.seed + 1)
        arguments = {name: str(path) for name, path in files.items()} | {"k": config.k, "threads": config.threads}
        found = [pathlib.Path(temporary, f"{side}.npz") for side in ("ours", "peer")]
        with (peer_workers(python, "search.py", {"peer": arguments}) as workers,
              our_worker(arguments, config.documents) as ours):
            peer = workers["peer"]
            print(f"{config.queries} queries, the nearest {config.k} of {config.documents} x {config.width} float32\n"
                  f"{describe_machine(config.threads, peer.ready['versions'])}", flush=True)
            ours.ask(output=str(found[0]))
            peer.ask(output=str(found[1]))
            difference, same = compare(*map(np.load, found))
            our_seconds, peer_seconds = [], []
            for repeat in range(config.repeats):
                search, answer = ours.ask(output=""), peer.ask(output="")
                our_seconds.append(search["seconds"])
                peer_seconds.append(answer["seconds"])
                print(f"repetition {repeat + 1}: ours {our_seconds[-1]:.2f} s, peer {peer_seconds[-1]:.2f} s",
                      flush=True)
        with our_worker(arguments, config.fewer_documents) as ours:
            for _ in range(1 + config.repeats):
                fewer = ours.ask(output="")
    peaks = {"ours": search["peak_bytes"], "ours_fewer": fewer["peak_bytes"], "peer": answer["peak_bytes"]}
    report(config, our_seconds, peer_seconds, peaks, difference, same)


@contextlib.contextmanager
def our_worker(arguments: dict, documents: int) -> Iterator[WorkerProcess]:
    """A fresh process of benchmarks/search_worker.py."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "benchmarks.search_worker", json.dumps(arguments | {"documents": documents})]
        worker = WorkerProcess(command, pathlib.Path(temporary), "search", working_folder=REPOSITORY)
        try:
            yield worker
        finally:
            worker.close()


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, float]:
    """(largest difference of a score at any rank, share of the peer's documents that ours has too)."""
    same = np.mean([np.isin(*rows).mean() for rows in zip(theirs["documents"], ours["documents"])])
    return float(np.abs(ours["scores"] - theirs["scores"]).max()), float(same)


def report(config: SearchBenchmarkConfig, our_seconds: list[float], peer_seconds: list[float], peaks: dict[str, int],
           difference: float, same: float) -> None:
    speed = paired_ratio([1 / seconds for seconds in our_seconds], [1 / seconds for seconds in peer_seconds])
    growth = peaks["ours"] / peaks["ours_fewer"]
    print(f"ours {1 / speed.ours:.2f} s, peer {1 / speed.theirs:.2f} s: {speed.ratio:.2f} times as fast "
          f"({speed.lowest:.2f} to {speed.highest:.2f})\n"
          f"most memory: ours {peaks['ours'] / 2**20:.0f} MiB, with {config.fewer_documents} documents "
          f"{peaks['ours_fewer'] / 2**20:.0f} MiB, peer {peaks['peer'] / 2**20:.0f} MiB\n"
          f"largest difference of a score: {difference:.1e}; the same documents: {100 * same:.2f} %")
    print_result(
        "exact_search", speed.ratio, TARGET,
        speed.ratio >= TARGET and growth <= LARGEST_GROWTH and difference <= LARGEST_DIFFERENCE,
        seconds=round(1 / speed.ours, 3), peer_seconds=round(1 / speed.theirs, 3), peak_bytes=peaks,
        memory_growth=round(growth, 3), largest_difference=difference, same_documents=same,
    )


if __name__ == "__main__":
    run_benchmark(SearchBenchmarkConfig, benchmark)
