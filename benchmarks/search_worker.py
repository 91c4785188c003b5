"""Our side of exact_search, in a process of its own, so that its peak memory is that of the search.

Prints one line when it is ready. For each {"output"} line it reads the first `documents` rows of the corpus window by
window, as evaluation/tasks/retrieval.py embeds one, searches them, and answers as benchmarks/peers/search.py does.
"""

import json
import pathlib
import sys
import time

import numpy as np

from benchmarks.machine import use_cpu


def memory(name: str) -> int:
    """Bytes that this process holds now (VmRSS), or its peak (VmHWM); only on Linux."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(corpus: str, queries: str, documents: int, k: int, threads: int) -> None:
    use_cpu(threads)
    import jax

    from inference.search import exact_search, window_rows

    jax.devices()
    query_vectors = np.load(queries)
    rows, width = window_rows(documents), query_vectors.shape[1]

    def windows():
        with open(corpus, "rb") as file:
            np.lib.format.read_magic(file), np.lib.format.read_array_header_1_0(file)
            for first in range(0, documents, rows):
                yield first, np.fromfile(file, np.float32, min(rows, documents - first) * width).reshape(-1, width)

    start_bytes = memory("VmRSS")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        output = json.loads(line)["output"]
        begin = time.perf_counter()
        scores, found = exact_search(query_vectors, k, windows(), rows)
        seconds = time.perf_counter() - begin
        peak_bytes = memory("VmHWM") - start_bytes
        if output:
            np.savez(output, documents=found, scores=scores)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes}), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
