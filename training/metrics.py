"""Metrics as JSON lines and, if asked for, TensorBoard.

WORKDIR/metrics.jsonl holds one object per line, in step order: training lines ({"step", "loss", "accuracy_at_1", ...};
objectives, reporter.py) and evaluation lines ({"step", "sts_spearman", "heldout_mrr@10", ...}).
"""

import json
import pathlib

from evaluation.report import curves


class MetricsWriter:
    """Appends to metrics.jsonl, from which the lines after step `kept_to` are dropped: a killed run wrote them."""

    def __init__(self, workdir: pathlib.Path, kept_to: int, tensorboard: bool):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= kept_to]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._tensorboard = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # the `tensorboard` extra

            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=kept_to + 1)

    def write(self, step: int, values: dict) -> None:
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of WORKDIR/metrics.jsonl; none if there is no such file."""
    path = workdir / "metrics.jsonl"
    return curves.read_metrics(path) if path.exists() else []
