"""Where devices and arrays lie: the mesh, the rule that splits arrays, and the one place that names mesh axes."""

import itertools
import math
import pathlib
import random
import re
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sharding.layout import (
    DEVICES,
    REPLICA,
    SHARD,
    chip_grid,
    host_copy,
    local_blocks,
    make_layout,
    make_mesh,
    partition_spec,
    place,
    ring_of_neighbours,
    ring_order,
    shard_axis,
)

ROOT = pathlib.Path(__file__).parents[2]


def chips(z, y, x, cores=1):
    """Devices of a TPU grid, in a random order."""
    devices = [types.SimpleNamespace(coords=[i, j, k], core_on_chip=core, process_index=0)
               for i in range(x) for j in range(y) for k in range(z) for core in range(cores)]
    random.Random(0).shuffle(devices)
    return devices


def coordinates(devices):
    return [[*device.coords, device.core_on_chip] for device in np.ravel(devices)]


@pytest.mark.parametrize("columns, rows", [(2, 2), (2, 4), (3, 4), (4, 3), (16, 16)])
def test_a_ring_of_neighbours(columns, rows):
    places = [(x, y, 0) for x in range(columns) for y in range(rows)]
    random.Random(0).shuffle(places)
    order = ring_of_neighbours(places)
    assert sorted(order) == list(range(columns * rows))
    ring = [places[number] for number in order]
    assert all(abs(x - other_x) + abs(y - other_y) == 1
               for (x, y, _), (other_x, other_y, _) in zip(ring, [*ring[1:], ring[0]]))


@pytest.mark.parametrize("places", [
    [()] * 4,  # no TPU
    [(x, y, z) for x in range(2) for y in range(2) for z in range(2)],
    [(x, 0, 0) for x in range(4)],
    [(x, y, 0) for x in range(3) for y in range(3)],
    [(x, y, 0) for x in range(2) for y in range(2)][:3],
    [(x, y, 0) for x in range(2) for y in range(2)] * 2,  # two devices a chip
])
def test_devices_that_are_no_flat_grid_keep_their_order(places):
    assert ring_of_neighbours(places) is None


def test_the_blocks_of_a_process_whose_devices_are_no_neighbours_on_the_mesh():
    devices = [types.SimpleNamespace(process_index=process) for process in (0, 1, 1, 0)]
    assert local_blocks(types.SimpleNamespace(devices=np.array(devices), size=4), 8) == [0, 1, 6, 7]
    assert local_blocks(make_mesh(), 16) == list(range(16))
    with pytest.raises(ValueError, match="blocks=6 is not divisible by devices=8"):
        local_blocks(make_mesh(), 6)


def test_the_mesh_of_this_machine():
    assert list(make_mesh().devices.flat) == jax.devices()
    mesh = make_mesh(shard_devices=4)
    assert mesh.shape[REPLICA] == 2 and math.prod(mesh.shape[name] for name in SHARD) == 4
    assert list(mesh.devices.flat) == jax.devices()
    with pytest.raises(ValueError, match="number of devices=8 is not divisible by shard_devices=3"):
        make_mesh(shard_devices=3)


@pytest.mark.parametrize("grid, shard_devices, shards", [
    ((1, 4, 4, 1), 16, (1, 4, 4, 1)),
    ((1, 16, 16, 1), 16, (1, 1, 16, 1)),
    ((1, 16, 16, 1), 64, (1, 4, 16, 1)),
    ((1, 16, 16, 1), 4, (1, 1, 4, 1)),
    ((4, 4, 4, 2), 8, (1, 1, 4, 2)),
    ((1, 2, 3, 1), 4, None),  # no part of the grid
])
def test_a_replica_is_a_part_of_the_chip_grid(grid, shard_devices, shards, monkeypatch):
    monkeypatch.setattr("sharding.layout.Mesh", lambda devices, names, axis_types: devices)
    z, y, x, cores = grid
    mesh = make_mesh(chips(z, y, x, cores)[:z * y * x * cores], shard_devices) if shards else None
    if shards is None:
        with pytest.raises(ValueError, match="not divisible"):
            make_mesh(chips(*grid), shard_devices)
        return
    assert mesh.shape == (math.prod(grid) // shard_devices, *shards)
    for axis in range(1, 5):  # along one mesh axis one coordinate changes, from neighbour to neighbour
        line = coordinates(np.moveaxis(mesh, axis, 0).reshape(mesh.shape[axis], -1)[:, -1])
        assert all(np.abs(np.subtract(first, second)).sum() == 1 for first, second in itertools.pairwise(line))


def test_devices_that_fill_no_grid_keep_their_order():
    devices = chips(1, 2, 3)[:5]
    assert list(chip_grid(devices).flat) == devices and chip_grid(devices).shape == (1, 1, 1, 5)
    assert chip_grid(jax.devices()).shape == (1, 1, 1, 8)


def test_the_ring_of_a_mesh_goes_from_neighbour_to_neighbour():
    devices = chip_grid(chips(1, 4, 4))
    order = ring_order(types.SimpleNamespace(devices=devices))
    ring = coordinates([devices.flat[number] for number in order])
    assert sorted(order) == list(range(16))
    assert all(np.abs(np.subtract(first, second)).sum() == 1 for first, second in zip(ring, [*ring[1:], ring[0]]))
    assert ring_order(make_mesh()) is None


def test_the_rule_that_splits_arrays():
    mesh = make_mesh(shard_devices=4)
    assert partition_spec((6, 32, 64), ("layers", "hidden", "intermediate"), mesh) == PartitionSpec(None, SHARD, None)
    assert partition_spec((6, 30, 64), ("layers", "hidden", "intermediate"), mesh) == PartitionSpec(None, None, SHARD)
    assert partition_spec((30, 30), ("hidden", "hidden"), mesh) == PartitionSpec(None, None), "whole"
    assert partition_spec((), (), mesh) == PartitionSpec()
    assert partition_spec((2, 16, 32), (None, "batch", "embedding"), mesh) == PartitionSpec(None, DEVICES, None)
    assert [shard_axis(partition_spec(shape, ("layers", "hidden"), mesh)) for shape in ((2, 8), (2, 6))] == [1, None]
    with pytest.raises(KeyError, match="width"):
        partition_spec((4,), ("width",), mesh)


def test_arrays_come_back_as_they_were_placed():
    tree = {"split": np.arange(48, dtype=np.float32).reshape(6, 8), "whole": np.float32(3)}
    specs = {"split": PartitionSpec(None, SHARD), "whole": PartitionSpec()}
    placed = place(tree, specs, make_mesh(shard_devices=4))
    assert placed["split"].addressable_shards[0].data.shape == (6, 2)
    jax.tree.map(np.testing.assert_array_equal, host_copy(placed), tree)


def test_layouts_of_one_device_say_once_that_they_change_nothing(caplog):
    with caplog.at_level("WARNING", "absl"):
        make_layout("parameters", devices=jax.devices()[:1])
        make_layout("none", devices=jax.devices()[:1])
        make_layout("parameters")
    assert [record.getMessage() for record in caplog.records] == [
        "shard_state=parameters changes nothing: a replica has one device"]


def test_only_the_layout_names_mesh_axes():
    """Other files import what they need of it; a new axis is a change of one file."""
    names = re.compile("|".join(rf"[\"']{name}[\"']" for name in DEVICES) + r"|\bREPLICA\b|\bSHARD\b")
    allowed = {"sharding/layout.py", "sharding/shares.py", "benchmarks/compile_layouts.py"}
    files = [path.relative_to(ROOT).as_posix() for folder in (
        "benchmarks", "data", "evaluation", "inference", "kernels", "model", "plan", "sharding", "training")
        for path in (ROOT / folder).rglob("*.py")]
    assert {file for file in files if names.search((ROOT / file).read_text())} <= allowed
