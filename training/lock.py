"""One run per workdir: a lock that dies with its process."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from data.lock import only_one


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Makes WORKDIR and holds WORKDIR/lock.

    A workdir that was made here and is still empty when the block fails is removed. Raises ValueError that names the
    host and the process of the run that holds it.
    """
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    with only_one(workdir / "lock", str(workdir), "--workdir"):
        try:
            yield
        except BaseException:
            if made and os.listdir(workdir) == ["lock"]:
                os.unlink(workdir / "lock")
                workdir.rmdir()
            raise
