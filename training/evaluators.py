"""Scores during training: STS Spearman and held-out retrieval, x 100; only retrieval uses the data's prompts.

Each evaluation leaves WORKDIR/evaluations/step-<step>.npz: cosines and human scores of the STS pairs, ranks of the
held-out pairs. They are what a paired bootstrap between two moments of the run, or two runs, needs.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data.examples import Prompts
from evaluation.measures.bootstrap import bootstrap_mrr, bootstrap_spearman
from evaluation.tasks.heldout import evaluate_pairs, read_pairs
from evaluation.tasks.sts import evaluate_sts, read_sts
from evaluation.tasks.translation import evaluate_translations, read_parallel
from inference.embed import read_lines
from inference.embedding import EncodeFunction
from training.metrics import read_metrics
from training.settings import EvaluationSettings

# The first of them that is measured selects the exported model.
SELECTED = ("sts_spearman", "heldout_mrr@10", "translation_accuracy", "teacher_mse")
LOWER_IS_BETTER = ("teacher_mse",)


class Evaluation(NamedTuple):
    scores: dict[str, float]  # x 100
    details: dict[str, np.ndarray]
    selected: float | None  # what selects the exported model; the larger, the better


TargetFunction = Callable[[list[str]], np.ndarray]  # n texts -> [n, D], the targets of the student


def make_evaluator(
    settings: EvaluationSettings, prompts: Prompts, has_teacher: bool = False
) -> Callable[[EncodeFunction, TargetFunction | None], Evaluation]:
    """Reads the evaluation files that the flags name, once. Raises ValueError for a --select that is not measured."""
    sts_pairs = read_sts(settings.eval_sts, settings.eval_split) if settings.eval_sts else []
    heldout = read_pairs(settings.eval_pairs) if settings.eval_pairs else []
    taught = read_lines(settings.eval_teacher) if settings.eval_teacher else []
    parallel = read_parallel(settings.eval_parallel) if settings.eval_parallel else None
    if taught and not has_teacher:
        raise ValueError(f"--eval_teacher={settings.eval_teacher} compares with a teacher: give --teacher=MODEL")
    measured = [name for name, is_there in zip(SELECTED, (sts_pairs, heldout, parallel, taught)) if is_there]
    if settings.select and settings.select not in measured:
        raise ValueError(f"--select={settings.select} is not measured: the evaluation flags give "
                         f"{', '.join(measured) or 'nothing'}")
    if settings.patience_epochs and not measured:
        raise ValueError(f"--patience_epochs={settings.patience_epochs} needs a score: give --eval_sts, for one")
    selecting = settings.select or next(iter(measured), None)

    def evaluate(encode: EncodeFunction, targets: TargetFunction | None) -> Evaluation:
        scores, details = {}, {}
        if sts_pairs:
            sts = evaluate_sts(encode, sts_pairs)
            scores["sts_spearman"] = sts.spearman
            details |= {"sts_cosines": sts.cosines, "sts_human_scores": sts.human_scores}
        if heldout:
            retrieval = evaluate_pairs(encode, heldout, prompts)
            scores |= {"heldout_accuracy@1": retrieval.accuracy_at_1, "heldout_mrr@10": retrieval.mrr_at_10}
            details["heldout_ranks"] = retrieval.ranks
        if parallel:
            by_language = evaluate_translations(encode, parallel, targets)
            scores["translation_accuracy"] = float(np.mean([of_one.accuracy for of_one in by_language.values()]))
            for language, of_one in by_language.items():
                scores[f"translation_accuracy:{language}"] = of_one.accuracy
                scores[f"translation_mse:{language}"] = of_one.mse
        if taught:
            scores["teacher_mse"] = float(((encode(taught) - targets(taught)) ** 2).mean())
        scores = {name: float(f"{100 * value:.7g}") for name, value in scores.items()}
        sign = -1 if selecting in LOWER_IS_BETTER else 1
        return Evaluation(scores, details, sign * scores[selecting] if selecting else None)

    return evaluate


def scores_at(workdir: pathlib.Path, step: int) -> dict[str, float]:
    """The scores x 100 that WORKDIR/metrics.jsonl has of one evaluated step; empty if there are none."""
    lines = [line for line in read_metrics(workdir) if line["step"] == step and "loss" not in line]
    return {name: value for line in lines for name, value in line.items() if name != "step"}


def details_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return workdir / "evaluations" / f"step-{step:07d}.npz"


def save_details(workdir: pathlib.Path, step: int, evaluation: Evaluation) -> None:
    path = details_path(workdir, step)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **evaluation.details)


def gains(workdir: pathlib.Path, first_step: int, second_step: int) -> Iterator[str]:
    """One line per score: its gain between two evaluated steps, with the 95 % interval of a paired bootstrap."""
    first, second = (np.load(details_path(workdir, step)) for step in (first_step, second_step))
    differences = {}
    if "sts_cosines" in first:
        differences["STS Spearman"] = bootstrap_spearman(
            first["sts_cosines"], second["sts_cosines"], first["sts_human_scores"])
    if "heldout_ranks" in first:
        differences["held-out MRR@10"] = bootstrap_mrr(first["heldout_ranks"], second["heldout_ranks"])
    for name, gain in differences.items():
        yield (f"{name}, step {second_step} against step {first_step}: {100 * gain.difference:+.2f} "
               f"(95 % of a paired bootstrap: {100 * gain.low:+.2f} to {100 * gain.high:+.2f})")
