"""Work of many processes: units are done in any order, the progress bar counts bytes, and Ctrl-C ends them all."""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tqdm

from data.mine import reading

POLL_SECONDS = 0.3
_counter: Any = None  # bytes read by all processes


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(NamedTuple):
    executor: concurrent.futures.ProcessPoolExecutor
    counter: Any  # bytes that all of its processes have read
    workers: int

    def bytes_read(self) -> int:
        """Read without the counter's lock, which a process that was killed or stopped may hold."""
        return self.counter.get_obj().value


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Pool | None]:
    """A pool of processes, which start when they are needed; None for one worker: this process does the work itself.

    If the block fails, work under way is ended. Raises OSError if a process has died.
    """
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (counter,))
    try:
        yield Pool(executor, counter, workers)
    except BaseException as error:
        for process in list((executor._processes or {}).values()):  # there is no public way to end work under way
            process.kill()
        if isinstance(error, concurrent.futures.process.BrokenProcessPool):
            raise OSError(f"one of {workers} mining processes died, perhaps because memory ran out: set a smaller "
                          "--workers or --memory. The same command goes on with what is finished") from error
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def run_all(
    pool: Pool | None, function: Callable[..., None], calls: Sequence[tuple], description: str, total: int
) -> None:
    """function(*call) for each call, in any order. The first error ends the work; what is finished stays finished.

    total: the bytes that all calls read through data/mine/reading.py, for the progress bar.
    """
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=description, mininterval=0.5) as bar:
        if pool is None:
            reading.progress = reading.Progress(bar.update)
            for call in calls:
                _call(function, *call)
        else:
            before = pool.bytes_read()
            with _without_ctrl_c():
                waiting = {pool.executor.submit(_call, function, *call) for call in calls}
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION)
                for future in done:
                    future.result()
                bar.update(min(pool.bytes_read() - before, total) - bar.n)
        bar.update(total - bar.n)


def map_in_order(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) in order, by that many processes; few items are in memory at once."""
    with processes(workers) as pool:
        if pool is None:
            yield from ((item, function(item)) for item in items)
            return
        under_way: collections.deque = collections.deque()
        for item in items:
            with _without_ctrl_c():
                under_way.append((item, pool.executor.submit(function, item)))
            if len(under_way) > 2 * workers:
                done, future = under_way.popleft()
                yield done, future.result()
        for done, future in under_way:
            yield done, future.result()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Holds back SIGINT; processes that are started here never get it, so that only the main one answers Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(function: Callable[..., None], *call: Any) -> None:
    reading.progress.start()
    function(*call)


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
