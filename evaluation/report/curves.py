"""WORKDIR/metrics.jsonl and the curves in it: the loss and each evaluation score, by step."""

import json
import pathlib
from typing import NamedTuple

from absl import logging

from evaluation.files.lines import numbered_lines

Curve = list[tuple[int, float]]  # (step, value)
BEGINNING = '{"step": '  # of each line of metrics.jsonl
LOSSES = {  # a term that an objective logs -> title of its loss, unit
    "accuracy_at_1": ("contrastive loss", "nats"),
    "sct_loss": ("cross-view loss", "nats"),
    "cd_loss": ("cross-view loss against the teacher", "nats"),
    "mse": ("mean squared error", "squared error per dimension"),
}


class Curves(NamedTuple):
    loss: Curve
    loss_title: str  # contrastive loss, mean squared error, ...; "loss" if it has several terms
    loss_unit: str
    scores: dict[str, Curve]  # x 100


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The lines of a metrics.jsonl. A last line that was cut off (by a kill) is left out and logged.

    Raises ValueError naming file:line for a line that `main.py train` cannot have written.
    """
    lines = list(numbered_lines(path))
    values = []
    for number, (place, text) in enumerate(lines, start=1):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(lines) and (text.startswith(BEGINNING) or BEGINNING.startswith(text)):
                logging.info("%s: the line is cut off, and is left out", place)
                break
            value = str(error)
        if not isinstance(value, dict) or type(value.get("step")) is not int:
            raise ValueError(f"{place}: not a line of metrics, an object with a whole number as step: {text[:80]!r}; "
                             "if another tool wrote the file, move it away or choose another folder")
        values.append(value)
    return values


def curves_of(lines: list[dict]) -> Curves:
    """The curves in the lines of metrics.jsonl. Lines with a loss are from training, the others from evaluations."""
    loss = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    terms = [name for name in LOSSES if any(name in line for line in lines if "loss" in line)]
    title, unit = LOSSES[terms[0]] if len(terms) == 1 else ("loss", "sum of its terms" if terms else "loss")
    scores: dict[str, Curve] = {}
    for line in lines:
        if "loss" not in line:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float) and not name.endswith("seconds"):
                    scores.setdefault(name, []).append((line["step"], value))
    return Curves(loss, title, unit, scores)
