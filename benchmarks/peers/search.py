"""Peer side of exact_search: sentence_transformers.util.semantic_search, once for each line of stdin.

Runs in the peer's environment from its own folder (see peer.py). For each {"output"} line it reads the corpus and
searches it, and answers {"seconds", "peak_bytes"}: the most memory so far, above that before the first search. What it
found goes to `output` (.npz: documents and scores, [queries, k]) if that is not empty.
"""

import json
import os
import sys
import time

arguments = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # libraries print to stdout; answers keep the pipe to themselves

import numpy as np  # noqa: E402
import sentence_transformers  # noqa: E402
import torch  # noqa: E402
from sentence_transformers import util  # noqa: E402

torch.set_num_threads(arguments["threads"])


def memory(name):  # VmRSS: now; VmHWM: the most so far
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


queries = torch.from_numpy(np.load(arguments["queries"]))
start_bytes = memory("VmRSS")
versions = {module.__name__: module.__version__ for module in (torch, sentence_transformers)}
print(json.dumps({"versions": versions}), file=answers)

for line in sys.stdin:
    order = json.loads(line)
    begin = time.perf_counter()
    corpus = torch.from_numpy(np.load(arguments["corpus"]))
    hits = util.semantic_search(queries, corpus, top_k=arguments["k"], score_function=util.dot_score)
    seconds = time.perf_counter() - begin
    peak_bytes = memory("VmHWM") - start_bytes
    if order["output"]:
        np.savez(order["output"], documents=[[hit["corpus_id"] for hit in of_query] for of_query in hits],
                 scores=[[hit["score"] for hit in of_query] for of_query in hits])
    del corpus, hits
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes}), file=answers)
