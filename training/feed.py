"""From the loader's host batches to global arrays on the mesh.

Each host packs its blocks into as few rows as they need, but a step needs the same shape on all hosts. So the hosts
agree on the largest number of rows. They exchange it for the next batch before this step runs, so the devices never
wait for it.
"""

import functools
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.loader import Batch, batch_with_rows
from data.packing import row_count
from sharding.layout import shard_blocks
from training.objectives.objective import StepBatch


class Fed(NamedTuple):
    host: Batch  # this host's part, numpy
    batch: StepBatch  # global arrays [P, ...] on the mesh
    loader_state: Any  # state of the loader after this batch: where a resumed run goes on


class Feed:
    """Iterates over the loader's batches, in order, one read ahead."""

    def __init__(self, loader: grain.DatasetIterator, mesh: Mesh):
        self._loader, self._mesh = loader, mesh
        self._next = self._read()

    def __iter__(self):
        return self

    def __next__(self) -> Fed:
        batch, loader_state, rows = self._next
        if jax.process_count() > 1:
            batch = batch_with_rows(batch, row_count(int(rows), batch.row_counts))
        fed = Fed(batch, shard_blocks(StepBatch(batch.packed, batch.targets), self._mesh), loader_state)
        self._next = self._read()
        return fed

    def _read(self) -> tuple[Batch, Any, jax.Array]:
        batch = next(self._loader)
        loader_state = self._loader.get_state()
        return batch, loader_state, self._ask_rows(batch.rows_needed)

    def _ask_rows(self, rows_needed: int) -> jax.Array | int:
        """The largest number of rows per block that any host needs, as an array that is not waited for."""
        if jax.process_count() == 1:
            return rows_needed
        mine = np.full(jax.local_device_count(), rows_needed, np.int32)
        return _largest(self._mesh)(shard_blocks(mine, self._mesh))


@functools.cache
def _largest(mesh: Mesh):
    return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
