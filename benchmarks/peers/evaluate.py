"""Peer side of evaluate_vs_sentence_transformers: EmbeddingSimilarityEvaluator on each task.

Runs in the peer's environment from its own folder (see peer.py). For each {"batch_size"} line it scores all tasks and
answers {"seconds", "scores": {task: cosine Spearman x 100}}.
"""

import json
import os
import sys
import time

arguments = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # libraries print to stdout; answers keep the pipe to themselves

import sentence_transformers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402

torch.set_num_threads(arguments["threads"])
model = sentence_transformers.SentenceTransformer(arguments["model"], device="cpu")
with open(arguments["tasks"], encoding="utf-8") as file:
    tasks = json.load(file)  # {task: {"sentence1", "sentence2", "score"}}
versions = {module.__name__: module.__version__ for module in (torch, transformers, sentence_transformers)}
print(json.dumps({"versions": versions}), file=answers)

for line in sys.stdin:
    order = json.loads(line)
    begin = time.perf_counter()
    scores = {}
    for name, task in tasks.items():
        evaluator = EmbeddingSimilarityEvaluator(
            task["sentence1"], task["sentence2"], task["score"], main_similarity="cosine",
            batch_size=order["batch_size"], write_csv=False,
        )
        scores[name] = 100 * evaluator(model)["spearman_cosine"]
    print(json.dumps({"seconds": time.perf_counter() - begin, "scores": scores}), file=answers)
