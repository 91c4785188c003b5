"""Locks that keep two prepares from writing the same files. They die with their process.

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
def only_prepare(data_dir: Path, task: int, num_tasks: int) -> Iterator[None]:
    """Holds the lock of one task, and removes its file at the end.

    Each prepare takes its own lock before it looks for others. So of two that start at once at least one is refused.
    A file system without locks is named in a warning.

    Raises ValueError that names the host and the process of a prepare that is in the way.
    """
    path = data_dir / f"prepare-{task}-of-{num_tasks}.lock"
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(_locked(path))
        except BlockingIOError:
            raise _in_use(data_dir, path) from None
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
            print(f"warning: {data_dir} has no locks ({error}): do not run two prepares in it", file=sys.stderr)
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            for other in sorted(data_dir.iterdir()):
                found = _NAME.fullmatch(other.name)
                if found and int(found[1]) != num_tasks:
                    if _is_held(other):
                        raise _in_use(data_dir, other)
                    other.unlink(missing_ok=True)  # a killed process left it
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """The file of that path, locked; BlockingIOError if another process holds it."""
    while True:
        with open(path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(path, file):  # not one that its holder removed just now
                yield file
                return


def _is_same(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock. A file that a killed process left is not held."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _in_use(data_dir: Path, lock: Path) -> ValueError:
    holder = lock.read_text().strip() if lock.exists() else ""
    return ValueError(f"{data_dir} is in use by another prepare ({lock.name}), {holder or 'which has just started'}: "
                      "wait until it ends, stop it, or choose another --data_dir")
