"""Settings of the host process."""

import ctypes
import platform
import sysconfig

from absl import logging

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for the next allocation instead of returning it to the system.

    On the CPU, XLA allocates a program's buffers anew for each call; from the system they come as pages that are
    faulted in and zeroed one by one, in a training step for a third of its time. Call it first: only memory allocated
    after it is kept. Elsewhere than on Linux with glibc it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_ARENA_MAX, 1)


def quiet_libraries() -> None:
    """Shows warnings and our own messages, and hides the INFO messages of libraries."""

    def is_worth_showing(record) -> bool:
        ours = sysconfig.get_path("purelib") not in record.pathname
        return ours or record.levelno >= logging.converter.STANDARD_WARNING  # type: ignore[attr-defined]

    logging.get_absl_handler().addFilter(is_worth_showing)
