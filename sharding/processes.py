"""The processes of a run: how they start, agree, and share compiled programs."""

import pathlib

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils


def initialize_processes(coordinator_address: str, num_processes: int, process_id: int) -> None:
    """Joins the processes of a pod or of one machine into one run; a single process needs no call.

    Args:
        coordinator_address: "host:port" of process 0; "auto" lets jax find the pod's own (TPU pods, SLURM, ...);
            "" means that there is only this process.
        num_processes, process_id: needed with an explicit address only.
    """
    if not coordinator_address:
        return
    if coordinator_address == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    logging.info("process %d of %d, %d of %d devices are local", jax.process_index(), jax.process_count(),
                 jax.local_device_count(), jax.device_count())


def keep_compiled_programs(folder: pathlib.Path) -> None:
    """Compiled programs are kept in `folder` and found there by the next process, unless jax has a folder already."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process; every process must ask."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())
