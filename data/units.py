"""A file is a unit of work: which task of a job array writes it, and how one machine writes several at once.

What is written of a file depends on the file and the options only. So one machine, the tasks of a job array and Apache
Beam (data/beam.py) write the same bytes.

On one machine a thread for each of FILES_AT_ONCE files decompresses it, sends its blocks to one pool of processes that
parse and tokenise, and writes their records. Neither one compressed stream nor one writer is then the limit.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import tqdm

from data.columns import Columns
from data.examples import Prompts
from data.files import read_json
from data.shards import FORMAT_VERSION
from data.source_file import SourceFile
from data.writer import (
    Block,
    DatasetWriter,
    TokenisedBlock,
    blocks_of,
    is_unchanged,
    start_worker,
    tokenise_in_worker,
)

FILES_AT_ONCE = 8
BLOCKS_PER_WORKER = 2  # that wait for a worker, are in one or wait to be written


class Unit(NamedTuple):
    """One file, and all that decides what is written of it."""

    name: str
    path: Path
    data_dir: Path
    fingerprint: str  # of the tokenizer in data_dir/tokenizer
    tsv_header: bool
    tsv: Literal["texts", "parallel"]
    columns: Columns | None
    prompts: Prompts
    max_bad_share: float
    options: dict  # as the manifest has them

    def source(self) -> SourceFile:
        return SourceFile(self.path, self.tsv_header, self.tsv, self.columns)


def of_task(units: Sequence[Unit], task: int, num_tasks: int) -> list[Unit]:
    """The files of one task: the largest first, each goes to the task that has the fewest bytes so far."""
    sizes = [0] * num_tasks
    mine = []
    for unit in sorted(units, key=lambda unit: (-unit.path.stat().st_size, unit.name)):
        least = sizes.index(min(sizes))
        sizes[least] += max(1, unit.path.stat().st_size)
        if least == task:
            mine.append(unit)
    return mine


def finished_manifest(unit: Unit) -> dict | None:
    """The manifest of a file that is written and has not changed since, else None."""
    folder = unit.data_dir / unit.name
    try:
        manifest = read_json(folder / "manifest.json")
    except (ValueError, FileNotFoundError):  # damaged, or not there
        return None
    current = {"format": FORMAT_VERSION, "tokenizer": unit.fingerprint, "options": unit.options}
    if any(manifest.get(key) != value for key, value in current.items()):
        return None
    if manifest["skipped"]["count"] > unit.max_bad_share * manifest["lines"]:
        return None  # reading it again raises the error
    shards_whole = all(
        (folder / shard["file"]).exists() and (folder / shard["file"]).stat().st_size == shard["bytes"]
        for shard in manifest["shards"]
    )
    return manifest if shards_whole and is_unchanged(manifest, unit.path) else None


def write_unit(
    unit: Unit,
    source: SourceFile,
    tokenise: Callable[[Iterator[Block]], Iterator[tuple[Block, TokenisedBlock]]],
    attempt: str = "",
) -> dict:
    """Writes the shards and the manifest of one file, whole or not at all; returns the manifest.

    `tokenise` gives each block with what it holds, in order. `attempt` tells processes apart that may write the same
    file at once.
    """
    writer = DatasetWriter(unit.data_dir, unit.name, source, unit.options["records_per_shard"], attempt)
    try:
        for block, tokenised in tokenise(blocks_of(source, unit.options["max_tokens_per_text"], unit.prompts)):
            writer.add(block, tokenised)
        writer.require_few_bad_lines(unit.max_bad_share)
        return writer.finish(unit.fingerprint, unit.options)
    except BaseException:
        shutil.rmtree(writer.folder, ignore_errors=True)  # on a full disk its room is needed
        raise


class _Stopped(Exception):
    """Another file failed, or the user stopped the command."""


class _Pool:
    """Processes that tokenise, shared by the threads of several files."""

    def __init__(self, workers: int, tokenizer_folder: Path):
        self.workers = workers
        self.stopped = threading.Event()
        self._places = threading.BoundedSemaphore(BLOCKS_PER_WORKER * workers + 2)
        self._processes = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), start_worker, (os.fspath(tokenizer_folder),))

    def tokenise(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, TokenisedBlock]]:
        """Each block with what it holds, in order. All files together have a bounded number of blocks in progress."""
        under_way: collections.deque[tuple[Block, concurrent.futures.Future]] = collections.deque()
        try:
            for block in blocks:
                while not self._places.acquire(blocking=not under_way):
                    yield self._oldest(under_way)
                under_way.append((block, self._submit(block)))
            while under_way:
                yield self._oldest(under_way)
        finally:
            for _ in under_way:
                self._places.release()

    def _submit(self, block: Block) -> concurrent.futures.Future:
        try:
            if self.stopped.is_set():
                raise _Stopped
            return self._processes.submit(tokenise_in_worker, block)
        except BaseException:
            self._places.release()
            raise

    def _oldest(self, under_way: collections.deque) -> tuple[Block, TokenisedBlock]:
        block, future = under_way[0]
        result = future.result()
        under_way.popleft()
        self._places.release()
        return block, result

    def stop(self) -> None:
        self.stopped.set()
        self._processes.shutdown(wait=True, cancel_futures=True)


def write_here(units: Sequence[Unit], workers: int) -> None:
    """Writes the files on this machine, several at once.

    Raises the error of the first file, in their order, that has one. The other files are stopped; finished ones stay.
    """
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    pool = _Pool(workers, units[0].data_dir / "tokenizer")
    sources = [unit.source() for unit in units]
    progress = tqdm.tqdm(total=sum(unit.path.stat().st_size for unit in units), unit="B", unit_scale=True,
                         desc="prepare", mininterval=0.5)
    threads = concurrent.futures.ThreadPoolExecutor(FILES_AT_ONCE, "file", _without_ctrl_c)

    def write(unit: Unit, source: SourceFile) -> None:
        try:
            if pool.stopped.is_set():
                raise _Stopped
            write_unit(unit, source, pool.tokenise)
        except BaseException:
            pool.stopped.set()
            raise

    try:
        waiting = [threads.submit(write, unit, source) for unit, source in zip(units, sources)]
        pending = set(waiting)
        while pending:
            _, pending = concurrent.futures.wait(pending, 0.5, concurrent.futures.FIRST_COMPLETED)
            progress.update(sum(source.bytes_read for source in sources) - progress.n)
        _raise_first([future.exception() for future in waiting], workers)
    finally:
        progress.close()
        pool.stop()
        threads.shutdown(wait=True, cancel_futures=True)


def _without_ctrl_c() -> None:
    """Only the main thread answers Ctrl-C: this thread and the processes that it starts never get it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _raise_first(errors: list[BaseException | None], workers: int) -> None:
    for error in errors:
        if isinstance(error, concurrent.futures.process.BrokenProcessPool):
            raise OSError(f"one of {workers} tokenising processes died, perhaps because memory ran out: set a smaller "
                          "--workers") from error
        if error is not None and not isinstance(error, _Stopped):
            raise error
