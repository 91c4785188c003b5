"""SIGTERM or Ctrl-C: finish the step, save, exit; at the same step in every process. A second Ctrl-C ends at once."""

import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended


class Preemption:
    """Within the context, `reached(step)` tells after each step whether this run has been asked to stop.

    A thread reads the signals as they arrive, so that the second Ctrl-C ends the process even if the main thread is
    compiling, when Python's own handlers have to wait.
    """

    def __init__(self) -> None:
        self.stopped_by = ""  # "SIGTERM" or "Ctrl-C"

    def __enter__(self) -> "Preemption":
        # With several processes jax's own service catches SIGTERM, and agrees with the others on a step.
        caught = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in caught}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._write)  # which ends the thread

    def _watch(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] == signal.SIGTERM:
                self.stopped_by = self.stopped_by or "SIGTERM"
            elif number[0] == signal.SIGINT and self.stopped_by != "Ctrl-C":
                self.stopped_by = "Ctrl-C"
                print("\nCtrl-C: the run ends after this step and saves it; once more ends it at once", file=sys.stderr)
                if jax.process_count() > 1:
                    os.kill(os.getpid(), signal.SIGTERM)
            elif number[0] == signal.SIGINT:
                print("\nmain.py: ended by the second Ctrl-C: the same command resumes from the last checkpoint",
                      file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
        os.close(self._read)

    def reached(self, step: int) -> bool:
        if jax.process_count() == 1:
            return bool(self.stopped_by)
        return multihost_utils.reached_preemption_sync_point(step)
