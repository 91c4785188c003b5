"""Peer side of encode_vs_sentence_transformers: SentenceTransformer.encode, once for each line of stdin.

Runs in the peer's environment from its own folder (see peer.py). For each {"batch_size", "output"} line it encodes all
texts and answers {"seconds"}; the embeddings go to `output` (.npy) if that is not empty.
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
import transformers  # noqa: E402

torch.set_num_threads(arguments["threads"])
model = sentence_transformers.SentenceTransformer(arguments["model"], device="cpu")
with open(arguments["texts"], encoding="utf-8") as file:
    texts = json.load(file)
versions = {module.__name__: module.__version__ for module in (torch, transformers, sentence_transformers)}
print(json.dumps({"versions": versions, "max_length": model.max_seq_length}), file=answers)

for line in sys.stdin:
    order = json.loads(line)
    begin = time.perf_counter()
    embeddings = model.encode(texts, batch_size=order["batch_size"], show_progress_bar=False)
    seconds = time.perf_counter() - begin
    if order["output"]:
        np.save(order["output"], embeddings)
    print(json.dumps({"seconds": seconds}), file=answers)
