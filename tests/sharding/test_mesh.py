"""The order of the devices on the mesh."""

import random
import types

import jax
import numpy as np
import pytest

from sharding.layout import local_blocks, make_mesh, ring_of_neighbours


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
