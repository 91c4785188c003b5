"""SIGTERM: finish the step, save, exit; at the same step in every process."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Within the context, `reached(step)` tells after each step whether this run has been asked to stop."""

    def __init__(self):
        self._asked = False

    def __enter__(self):
        if jax.process_count() == 1:  # with several, jax's own service catches the signal
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_):
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, *_):
        self._asked = True

    def reached(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)
