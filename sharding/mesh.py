"""The device mesh, multi-process start-up, and how host arrays become global ones.

Legend: B = global batch, P = packing blocks of the global batch, p = blocks on one host.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def initialize_processes(coordinator_address: str, num_processes: int, process_id: int) -> None:
    """Joins the processes of a pod or of one machine into one run; a single process needs no call.

    Args:
        coordinator_address: "host:port" of process 0; "auto" lets jax find the pod's own (TPU pods, SLURM, ...);
            "" means that this process is alone.
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


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis over the devices (all, of all processes): each holds a share of the batch and all parameters."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_divides(total: int, total_name: str, parts: int, parts_name: str) -> int:
    """total // parts, or a ValueError that names both."""
    if total < 1 or total % parts:
        raise ValueError(f"{total_name}={total} is not divisible by {parts_name}={parts}")
    return total // parts


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of host arrays, equal in every process, on every device as new buffers."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def shard_blocks(tree: Any, mesh: Mesh) -> Any:
    """Each process's [p, ...] arrays -> global [P, ...] arrays, sharded over the devices on axis 0."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def host_copy(tree: Any) -> Any:
    """Replicated device arrays -> numpy, from this process's first device: no communication."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
