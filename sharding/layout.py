"""Where every array lies: the mesh, and one table that says over which of its axes an array's axes are split.

The devices form a mesh of replicas, each of which has shards. The batch is split over both, so that each device has its
own part of it. The parameters and the optimizer's state are split over the shards of a replica, if --shard_state says
so, and every replica has all of them. With --shard_devices=4 on 8 devices, each number being a device:

                shard 0  1  2  3
    replica 0         0  1  2  3      the devices of a replica are neighbours on the chip grid
    replica 1         4  5  6  7

On TPUs a shard has a place on each axis of the chip grid, so that "shard" is several mesh axes, and sums are scattered
over one after the other. Elsewhere all but one of them have one place.

No other file names a mesh axis. To shard along another axis of the arrays, change its line in AXES.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

REPLICA = "replica"
SHARD = ("shard_z", "shard_y", "shard_x", "shard_core")  # one for each axis of the chip grid
DEVICES = (REPLICA, *SHARD)  # all devices, replica by replica

AXES: dict[str | None, tuple[str, ...]] = {  # axis of an array -> the mesh axes that it is split over
    "batch": DEVICES,  # examples, packing blocks, rows of a queue's slot
    "hidden": SHARD,
    "heads": SHARD,  # the features of all heads, side by side
    "intermediate": SHARD,
    "embedding": SHARD,  # features of the heads after pooling
    "layers": (),  # the encoder scans over them: only this axis cannot be split
    "vocabulary": (),  # the token table is split by columns: a lookup then moves a tenth of the bytes (BUILD.md)
    "positions": (),
    "types": (),
    "projections": (),  # queries, keys, values
    None: (),  # any other axis
}

ShardState = Literal["none", "optimizer", "parameters"]
SPLIT_STATE: dict[ShardState, tuple[str, ...]] = {  # --shard_state -> what obeys the table beside the batch
    "none": (),
    "optimizer": ("optimizer",),
    "parameters": ("optimizer", "parameters"),
}

WHOLE = PartitionSpec()  # every device has all of the array
SPLIT = PartitionSpec(DEVICES)  # the first axis is split over all devices


class Layout(NamedTuple):
    """Where a run's arrays lie."""

    mesh: Mesh
    shard_state: ShardState = "none"


def make_layout(
    shard_state: ShardState = "none", shard_devices: int = 0, devices: Sequence[jax.Device] | None = None
) -> Layout:
    """The layout over `devices` (None: all, of all processes); each replica has `shard_devices` of them (0: all).

    Raises ValueError if shard_devices does not divide the devices.
    """
    layout = Layout(make_mesh(devices, shard_devices), shard_state)
    if shard_state != "none" and layout.mesh.size == layout.mesh.shape[REPLICA]:
        logging.warning("shard_state=%s changes nothing: a replica has one device", shard_state)
    return layout


def make_mesh(devices: Sequence[jax.Device] | None = None, shard_devices: int = 0) -> Mesh:
    """The mesh over the devices (None: all, of all processes), `shard_devices` to a replica (0: all).

    TPU chips keep their places on the chip grid, so that a mesh axis is a line of neighbours: libtpu makes an
    all-reduce, which sends twice as much, of a sum that is scattered over anything else.
    """
    devices = list(jax.devices() if devices is None else devices)
    wanted = shard_devices or len(devices)
    check_divides(len(devices), "the number of devices", wanted, "shard_devices")
    grid = chip_grid(devices)
    shards = _shards_of_grid(grid.shape, wanted)
    if shards is None:
        grid = np.array(devices).reshape(1, 1, 1, -1)
        shards = (1, 1, 1, wanted)
    parts = [part for size, shard in zip(grid.shape, shards) for part in (size // shard, shard)]
    replicas_first = grid.reshape(parts).transpose(0, 2, 4, 6, 1, 3, 5, 7)
    return Mesh(replicas_first.reshape(-1, *shards), DEVICES, axis_types=(AxisType.Auto,) * len(DEVICES))


def chip_grid(devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices at their places on the chip grid, [z, y, x, core]; in their order, if they do not fill a grid."""
    places = [(*reversed(getattr(device, "coords", ())), getattr(device, "core_on_chip", 0)) for device in devices]
    if any(len(place) != 4 for place in places) or len(set(places)) < len(devices):
        return np.array(devices).reshape(1, 1, 1, -1)
    first = [min(axis) for axis in zip(*places)]
    sizes = [max(axis) - low + 1 for axis, low in zip(zip(*places), first)]
    if math.prod(sizes) != len(devices):
        return np.array(devices).reshape(1, 1, 1, -1)
    grid = np.empty(sizes, object)
    for device, place in zip(devices, places):
        grid[tuple(np.subtract(place, first))] = device
    return grid


def _shards_of_grid(sizes: Sequence[int], wanted: int) -> tuple[int, ...] | None:
    """How many places of each axis of the grid a replica takes, the last axes first; None if none fits."""
    shards = []
    for size in reversed(sizes):
        shards.append(math.gcd(size, wanted))
        wanted //= shards[-1]
    return tuple(reversed(shards)) if wanted == 1 else None


def ring_order(mesh: Mesh) -> tuple[int, ...] | None:
    """The places on the mesh that are a closed ring of neighbouring chips; None: they are numbered along one.

    On large grids XLA sends while it computes only if every hop goes to a neighbour (v5e, jax 0.10).
    """
    coordinates = [tuple(getattr(device, "coords", ())) for device in mesh.devices.flat]
    ring = ring_of_neighbours(coordinates)
    return None if ring is None else tuple(ring)


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


def partition_spec(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
    """How an array with these axes is split.

    A mesh axis splits an array once: along the first of the array's axes that the table splits over it and whose size
    it divides. An array without such an axis stays whole.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        over = AXES[axis]
        takes = bool(over) and not used & set(over) and size % math.prod(mesh.shape[name] for name in over) == 0
        entries.append(over if takes else None)
        used |= set(over) if takes else set()
    return PartitionSpec(*entries)


def state_spec(kind: Literal["parameters", "optimizer"], layout: Layout) -> Callable[[Any], PartitionSpec]:
    """declaration (its `shape` and `axes`) -> the spec of that parameter, or of its part of the optimizer's state."""
    if kind not in SPLIT_STATE[layout.shard_state]:
        return lambda declaration: WHOLE
    return lambda declaration: partition_spec(declaration.shape, declaration.axes, layout.mesh)


def shard_axis(spec: PartitionSpec) -> int | None:
    """The axis of an array that `spec` splits over the shards of a replica; None if each device has all of it."""
    return next((axis for axis, over in enumerate(spec) if over == SHARD), None)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """A tree of PartitionSpecs -> the same of NamedShardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


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


def shard_blocks(tree: Any, mesh: Mesh) -> Any:
    """Each process's local_blocks [p, ...] -> global [P, ...] arrays, split over all devices on axis 0."""
    sharding = NamedSharding(mesh, SPLIT)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def split(tree: Any, mesh: Mesh) -> Any:
    """Host arrays [P, ...], equal in every process -> global arrays, split over all devices on axis 0."""
    sharding = NamedSharding(mesh, SPLIT)
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def place(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Puts a tree of host arrays, equal in every process, on the devices as new buffers, each where its spec says."""

    def put(x: Any, spec: PartitionSpec) -> jax.Array:
        array = np.asarray(x)
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), lambda index: np.array(array[index]))

    return jax.tree.map(put, tree, specs)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of host arrays, equal in every process, on every device as new buffers."""
    return place(tree, jax.tree.map(lambda _: WHOLE, tree), mesh)


def host_copy(tree: Any) -> Any:
    """Device arrays -> numpy, whole. Split arrays are gathered one at a time, and then every process must take part."""

    def copy(x: jax.Array) -> np.ndarray:
        if isinstance(x.sharding, NamedSharding) and not x.is_fully_replicated:
            x = jax.device_put(x, NamedSharding(x.sharding.mesh, WHOLE))
        return np.asarray(x.addressable_data(0))

    return jax.tree.map(copy, tree)
