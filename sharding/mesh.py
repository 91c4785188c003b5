"""The device mesh, multi-process start-up, and how host arrays become global ones.

Legend: P packing blocks in the global batch, p on the devices of this process.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
RING_DEVICES = 32
"""From so many TPU chips on, XLA overlaps sending with computing only between neighbours (seen for v5e, jax 0.10)."""


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


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis over the devices (all, of all processes): each holds a share of the batch and all parameters.

    On a large flat grid of TPU chips it is a ring of neighbours; jax.make_mesh would take the chips row by row.
    """
    devices = jax.devices() if devices is None else devices
    axis = {"axis_names": (DATA_AXIS,), "axis_types": (AxisType.Auto,)}
    ring = None
    if len(devices) >= RING_DEVICES:
        ring = ring_of_neighbours([tuple(getattr(device, "coords", ())) for device in devices])
    if ring is None:
        return jax.make_mesh((len(devices),), devices=devices, **axis)
    return Mesh(np.array(devices)[ring], **axis)


def ring_of_neighbours(coordinates: Sequence[tuple[int, ...]]) -> list[int] | None:
    """The order in which chips at (x, y, 0) are a closed ring of neighbours: up x = 0, then row by row back down.

    None if they are not a whole grid of at least 2 by 2, with an even number of rows or of columns, one device each.
    """
    if any(len(place) != 3 or place[2] for place in coordinates):
        return None
    columns, rows = (1 + max(place[axis] for place in coordinates) for axis in (0, 1))
    index = {place[:2]: number for number, place in enumerate(coordinates)}
    if min(columns, rows) < 2 or not len(index) == len(coordinates) == columns * rows:
        return None
    if rows % 2:
        return None if columns % 2 else ring_of_neighbours([(y, x, 0) for x, y, _ in coordinates])
    places = [(0, y) for y in range(rows)]
    for number, y in enumerate(reversed(range(rows))):
        places += [(x, y) for x in range(1, columns)][::-1 if number % 2 else 1]
    return [index[place] for place in places]


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process; every process must ask."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())


def check_divides(total: int, total_name: str, parts: int, parts_name: str) -> int:
    """total // parts, or a ValueError that names both."""
    if total < 1 or total % parts:
        raise ValueError(f"{total_name}={total} is not divisible by {parts_name}={parts}")
    return total // parts


def local_blocks(mesh: Mesh, num_blocks: int) -> list[int]:
    """Which of `num_blocks` equal blocks of a global array lie on this process's devices, ascending.

    Its devices need not be neighbours on the mesh. shard_blocks takes the process's blocks in this order.
    """
    each = check_divides(num_blocks, "blocks", mesh.size, "devices")
    places = [place for place, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return [place * each + block for place in places for block in range(each)]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of host arrays, equal in every process, on every device as new buffers."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def shard_blocks(tree: Any, mesh: Mesh) -> Any:
    """Each process's local_blocks [p, ...] -> global [P, ...] arrays, sharded over the devices on axis 0."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def host_copy(tree: Any) -> Any:
    """Replicated device arrays -> numpy, from this process's first device: no communication."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
