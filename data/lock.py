"""Locks that keep two runs from writing the same files. They die with their process.

A prepare holds DATA_DIR/prepare-<task>-of-<tasks>.lock; without --num_tasks it is task 0 of 1. The tasks of one job
array divide the files in the same way, so they may run at once. Two prepares that divide them in other ways may not.
"""

import contextlib
import fcntl
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_NAME = re.compile(r"prepare-\d+-of-(\d+)\.lock")


@contextlib.contextmanager
def only_one(path: Path, what: str, choose: str) -> Iterator[None]:
    """Holds the lock of `path`, a file that names this host and process; the kernel frees it when the process ends.

    Raises ValueError if another process holds it: "`what` is in use by another run, ...: ..., or choose another
    `choose`". Raises OSError if the file system has no locks.
    """
    with _locked(path, what, choose) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def only_prepare(data_dir: Path, task: int, num_tasks: int) -> Iterator[None]:
    """Holds the lock of one task, and removes its file at the end.

    Each prepare takes its own lock before it looks for others. So of two that start at once at least one is refused.
    A file system without locks is named in a warning.

    Raises ValueError that names the host and the process of a prepare that is in the way.
    """
    path = data_dir / f"prepare-{task}-of-{num_tasks}.lock"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(only_one(path, str(data_dir), "--data_dir"))
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
            print(f"warning: {data_dir} has no locks ({error}): do not run two prepares in it", file=sys.stderr)
            yield
            return
        try:
            for other in sorted(data_dir.iterdir()):
                found = _NAME.fullmatch(other.name)
                if found and int(found[1]) != num_tasks:
                    with _locked(other, str(data_dir), "--data_dir"):
                        other.unlink(missing_ok=True)  # a killed process left it
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, what: str, choose: str) -> Iterator[IO[str]]:
    """The file of that path, locked; ValueError if another process holds it."""
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "which has just started"
                raise ValueError(f"{what} is in use by another run, {holder} ({path.name}): wait until it ends, stop "
                                 f"it, or choose another {choose}") from None
            if _is_same(path, file):  # not one that its holder removed just now
                yield file
                return


def _is_same(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
