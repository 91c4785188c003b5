"""Work of many processes: units are done in any order, the progress bar counts bytes, and Ctrl-C ends them all."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from data.mine import reading

POLL_SECONDS = 0.3
_counter: Any = None  # bytes read by all processes


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(function: Callable[..., None], calls: Sequence[tuple], workers: int, description: str, total: int) -> None:
    """function(*call) for each call, in up to `workers` processes; in this one if there is one worker or one call.

    total: the bytes that all calls read through data/mine/reading.py, for the progress bar. The first error ends the
    work; calls that are finished stay finished. Raises OSError if a process dies.
    """
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=description, mininterval=0.5) as bar:
        if workers == 1 or len(calls) < 2:
            reading.progress = reading.Progress(bar.update)
            for call in calls:
                function(*call)
        else:
            _run_in_pool(function, calls, min(workers, len(calls)), bar)
        bar.update(total - bar.n)


def _run_in_pool(function: Callable[..., None], calls: Sequence[tuple], workers: int, bar: tqdm.tqdm) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (counter,))
    try:
        with _without_ctrl_c():
            waiting = {pool.submit(function, *call) for call in calls}
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION)
            for future in done:
                future.result()
            bar.update(counter.value - bar.n)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise OSError(f"one of {workers} mining processes died, perhaps because memory ran out: set a smaller "
                      "--workers or --memory. The same command goes on with what is finished") from error
    except BaseException:
        for process in list(pool._processes.values()):  # the pool has no public way to end work under way
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Holds back SIGINT; processes that are started here never get it, so that only the main one answers Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    reading.progress = reading.Progress(_add)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _add(count: int) -> None:
    with _counter.get_lock():
        _counter.value += count


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
