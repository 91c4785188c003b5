"""What goes round the ring: each device meets every block once, and the totals of a block come home complete."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.layout import DEVICES, SPLIT, make_mesh
from sharding.ring import ring_scan


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_every_device_meets_every_block_once(num_devices, ways):
    """State: the names of the blocks met, in order. Totals: how often each device has met the block."""
    mesh = make_mesh(jax.devices()[:num_devices])

    def step(k, hop, met, block, visits):
        me = jax.lax.axis_index(DEVICES)
        return met.at[k, hop].set(block["name"][0]), visits.at[0, me].add(k + 1)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT,
                       check_vma=False)
    def meet_all(names):
        blocks = [{"name": names + 100 * k, "nothing": None} for k in range(ways)]
        met, visits = ring_scan(step, jnp.full((ways, num_devices), -1), blocks,
                                [jnp.zeros((1, num_devices), jnp.int32)] * ways, DEVICES)
        return met[None], jnp.stack(visits, axis=1)

    met, visits = jax.jit(meet_all)(jnp.arange(num_devices))
    device, hop = np.ogrid[:num_devices, :num_devices]
    expected = [(device - hop) % num_devices, 100 + (device + hop) % num_devices][:ways]
    np.testing.assert_array_equal(met, np.stack(expected, axis=1))
    for k in range(ways):
        np.testing.assert_array_equal(visits[:, k], np.full((num_devices, num_devices), k + 1))
