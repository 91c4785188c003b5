"""One run per workdir: a lock that dies with its process."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Makes WORKDIR and holds WORKDIR/lock, which names this host and process.

    The kernel frees the lock when the process ends, however it ends. A workdir that was made here and is still empty
    when the block fails is removed. Raises ValueError that names the host and the process of the run that holds it.
    """
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"{workdir} is in use by another run, {file.read().strip() or 'which has just started'}: "
                             "wait until it ends, stop it, or choose another --workdir") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        except BaseException:
            if made and os.listdir(workdir) == ["lock"]:
                os.unlink(workdir / "lock")
                workdir.rmdir()
            raise
