"""Checks and logs each finished step: stops on a non-finite loss, writes metrics, moves the progress bar."""

import contextlib
import json
import math
import pathlib
import time
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np
import tqdm

from training.feed import Fed
from training.metrics import MetricsWriter
from training.settings import TrainConfig, is_due


class Reporter:
    """Rates are over the time since the last line, without evaluations and checkpoints (`paused`)."""

    def __init__(self, config: TrainConfig, resumed_step: int | None):
        self._config, self._writer = config, None  # only process 0 writes
        if jax.process_index() == 0:
            kept = -1 if resumed_step is None else resumed_step
            self._writer = MetricsWriter(pathlib.Path(config.run.workdir), kept, config.run.tensorboard)
        self._num_steps = config.optimizer.num_steps
        self._bar = tqdm.tqdm(total=self._num_steps, initial=resumed_step or 0, unit="step", mininterval=0.5,
                              disable=self._writer is None, dynamic_ncols=True)
        self._compiled: set[tuple[int, int]] = set()  # (rows per block, texts per example)
        self._start_window()

    def _start_window(self) -> None:
        self._started = time.perf_counter()
        self._steps, self._texts, self._totals = 0, 0, Counter()

    def step_done(self, step: int, fed: Fed, metrics: dict[str, jax.Array]) -> None:
        """Reads the metrics of step `step` (counted from 1), which waits for that step to finish.

        Raises: FloatingPointError on a non-finite loss or gradient, once the batch is saved.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            self._stop(step, fed, values)
        statistics = fed.host.statistics
        self._steps += 1
        for name in ("texts", "real_tokens", "row_tokens", "truncated_texts"):
            self._totals[name] += getattr(statistics, name)
        self._bar.update()
        if is_due(step, self._config.run.log_every) or step == self._num_steps:
            self._log(step, values)

    def _log(self, step: int, values: dict[str, float]) -> None:
        seconds, totals = time.perf_counter() - self._started, self._totals
        pairs_per_second = self._steps * self._config.batch.global_batch_size / seconds
        if self._writer is not None:
            self._writer.write(step, values | {
                "pairs_per_second": round(pairs_per_second, 2),
                "tokens_per_second": round(totals["real_tokens"] * jax.process_count() / seconds, 1),
                "packing_efficiency": round(totals["real_tokens"] / totals["row_tokens"], 4),
                "truncated_texts": totals["truncated_texts"],
                "texts": totals["texts"],
            })
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {pairs_per_second:.0f} pairs/s", refresh=False)
        self._start_window()

    def _stop(self, step: int, fed: Fed, values: dict[str, float]) -> None:
        name = f"nonfinite-step-{step:07d}-process-{jax.process_index()}.npz"
        path = pathlib.Path(self._config.run.workdir, name)
        np.savez_compressed(path, **fed.host.packed._asdict(), datasets=json.dumps(fed.host.statistics.datasets))
        names = ", ".join(f"{name} ({count})" for name, count in fed.host.statistics.datasets)
        raise FloatingPointError(
            f"step {step}: loss={values['loss']}, gradient_norm={values['gradient_norm']}; the batch, drawn from "
            f"{names}, is saved in {path}. The last checkpoint is from before it"
        )

    @contextlib.contextmanager
    def first_call(self, fed: Fed) -> Iterator[None]:
        """Says that a step is compiled, if it is the first on a batch of this size; that time does not count."""
        size = fed.batch.packed.tokens.shape[1], fed.host.texts_per_example
        if size in self._compiled:
            yield
            return
        self._compiled.add(size)
        with self.paused(f"compiling a step of {size[0]} rows"):
            yield

    @contextlib.contextmanager
    def paused(self, activity: str) -> Iterator[None]:
        """The progress bar names the activity, and the time spent in here does not count."""
        self._bar.set_postfix_str(activity)
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self._started += seconds
        if not self._bar.disable:  # the time left is estimated without it
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds
        self._bar.set_postfix_str("", refresh=False)

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        self._bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        if self._writer is not None:
            self._writer.write(step, scores)

    def close(self) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
