"""Runs as `main.py evaluate --output` and a training leave them, of numbers and texts that a test chooses."""

import gzip
import json

import numpy as np
import scipy.stats

from evaluation.results import items_path

LANGUAGES = ("de", "fr", "zh")


def sts_items(noise, n=40, seed=0, sentence="A {row} & <b>b</b>", part=""):
    """Columns of an STS task whose gold scores are those of every call with this n."""
    gold = np.random.default_rng(7).integers(0, 26, n) / 5
    cosines = gold / 5 + noise * np.random.default_rng(seed).normal(size=n)
    first, second = ([f"{side} {sentence.format(row=row)}" for row in range(n)] for side in ("first", "second"))
    return {"sentence1": first, "sentence2": second, "score": gold.tolist(), "cosine": cosines.tolist(),
            "part": [part] * n}


def spearman_line(task, items, split="test"):
    """[task, split, metric, value, n] of an STS task by scipy."""
    value = 100 * scipy.stats.spearmanr(items["cosine"], items["score"]).statistic
    return [task, split, "cosine_spearman", value, len(items["cosine"])]


def language_lines(best):
    return [[f"ntrex:{name}", "heldout", "translation_accuracy", best - 10 * number, 20]
            for number, name in enumerate(LANGUAGES)]


def write_run(folder, lines, items, *, model="m1", name="results.json", neighbours=(), with_items=True):
    """results.json of lines [task, split, metric, value, n] and the items file of {task: columns}."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = ("task", "split", "metric", "value", "n")
    origin = {"model": model, "code": "c0de", "seconds": 1.5}
    (folder / name).write_text(json.dumps([dict(zip(fields, line)) | origin for line in lines]))
    texts = {"token_counts": [3, 4, 5, 5, 9], "random_cosines": [-0.1, 0.0, 0.1, 0.2], "neighbours": list(neighbours)}
    if with_items:
        items_path(folder / name).write_bytes(gzip.compress(json.dumps({"tasks": items} | texts).encode()))
    return folder


def sts_run(folder, noise, tasks=("stsb",), **options):
    """A run that has scored some STS tasks, the noisier the worse."""
    items = {task: sts_items(noise) for task in tasks}
    return write_run(folder, [spearman_line(task, of_task) for task, of_task in items.items()], items, **options)


def training_run(folder, noise=0.2, steps=20):
    """A WORKDIR: losses every step, the scores of STS and of held-out pairs every ten steps and what they are of."""
    (folder / "evaluations").mkdir(parents=True)
    lines = []
    for step in range(steps + 1):
        lines += [{"step": step, "loss": 3 / (step + 1), "pairs_per_second": 50.0 + step}] if step else []
        if step % 10 == 0:
            items = sts_items(noise / (step + 1))
            ranks = np.arange(1, 31) % (20 - step // 2) + 1
            lines.append({"step": step, "sts_spearman": float(f"{spearman_line('', items)[3]:.7g}"),
                          "heldout_mrr@10": float(f"{100 * np.where(ranks <= 10, 1 / ranks, 0).mean():.7g}"),
                          "translation_mse:de": 1.0 / (step + 1)})
            np.savez(folder / "evaluations" / f"step-{step:07d}.npz", sts_cosines=items["cosine"],
                     sts_human_scores=items["score"], heldout_ranks=ranks)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
