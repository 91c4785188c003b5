"""Exact search: the k documents with the largest inner product for each query, over a corpus that is never whole.

The corpus comes in windows of embeddings. A window is split over this process's devices, and each device has all
queries. A device keeps the best k documents that it has seen for each query, and merges those of the next window into
them. Each process searches windows of its own. Their results are merged once, at the end, so that memory grows only
with Q k and with the size of a window.

Legend: Q queries, q queries compared at a time, N documents of a window, n = N / W on one device, W devices of this
process, H processes, D width of the embeddings.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from sharding.layout import DEVICES, SPLIT, WHOLE, make_mesh

LARGEST_WINDOW = 32768  # 50 MB of embeddings of width 384
WINDOW_STEP = 1024  # a window of a multiple of it needs no padding on any usual number of devices
QUERY_BLOCK = 128
CHUNK = 32  # of the rows that share a maximum, see _block_top_k


def window_rows(num_documents: int, processes: int = 1) -> int:
    """Rows of a window: a multiple of WINDOW_STEP, at most LARGEST_WINDOW, with as many windows for each process."""
    rounds = -(-num_documents // (processes * LARGEST_WINDOW))
    share = -(-num_documents // (processes * max(1, rounds)))
    return min(-(-share // WINDOW_STEP) * WINDOW_STEP, LARGEST_WINDOW)


def exact_search(
    queries: np.ndarray, k: int, windows: Iterable[tuple[int, np.ndarray]], rows: int, devices: list | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(scores [Q, k] float32, documents [Q, k] int32): for each query the k largest q . x, the largest first.

    Among equal scores the document that comes first in the corpus is first, whatever the windows, devices and
    processes. If the corpus has fewer than k documents the rest of a row is -inf and -1. Products are float32's.

    Args:
        queries: [Q, D] float32, the same in every process.
        windows: (number of its first document in the corpus, embeddings [at most `rows`, D]), this process's own, by
            ascending number. The next window is asked for while this one is searched.
        rows: the most rows of a window, in any process.
        devices: of this process; None: all of them.
    """
    mesh = make_mesh(devices or jax.local_devices())
    per_device = -(-rows // (mesh.size * CHUNK)) * CHUNK
    blocks = -(-len(queries) // QUERY_BLOCK)
    block = -(-len(queries) // blocks)
    by_device, everywhere = NamedSharding(mesh, SPLIT), NamedSharding(mesh, WHOLE)
    query_blocks = jax.device_put(_padded(queries, blocks * block).reshape(blocks, block, -1), everywhere)
    shape = mesh.size, blocks, block, k
    best = jax.device_put((np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)), by_device)
    merge = _compiled(mesh)
    for first, embeddings in windows:
        if len(embeddings) > rows:
            raise ValueError(f"a window of {len(embeddings)} documents, but rows={rows}")
        jax.block_until_ready(best)  # at most one window waits: dispatching many would hold them all
        window = jax.device_put(_padded(embeddings, mesh.size * per_device), by_device)
        best = merge(best, query_blocks, window, np.int32(first), np.int32(len(embeddings)))
        del embeddings, window  # held no longer than the search of them
    scores, documents = (np.asarray(part).reshape(mesh.size, -1, k)[:, :len(queries)] for part in best)
    if jax.process_count() > 1:
        scores, documents = (part.reshape(-1, *part.shape[2:])
                             for part in multihost_utils.process_allgather((scores, documents)))  # [H, W, Q, k]
    return _merged(scores, documents, k)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows: those given, then zeros."""
    if len(rows) == count:
        return rows
    padded = np.zeros((count, rows.shape[1]), np.float32)
    padded[:len(rows)] = rows
    return padded


def _merged(scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of what all devices found, each [devices, Q, k] -> [Q, k]."""
    scores, documents = (np.concatenate(list(part), axis=1) for part in (scores, documents))
    order = np.lexsort((documents, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(documents, order, axis=1)


@functools.lru_cache(maxsize=8)
def _compiled(mesh: jax.sharding.Mesh):
    """(best, query blocks, window, first, count) -> best, in which the window's documents compete."""

    def local(best, query_blocks, window, first, count):
        # best ([1, blocks, q, k], the same), query_blocks [blocks, q, D], window [n, D]
        number = jax.lax.axis_index(DEVICES) * len(window) + jnp.arange(len(window), dtype=jnp.int32)
        documents = jnp.where(number < count, first + number, -1)  # [n]

        def search_block(operands):
            best_scores, best_documents, queries = operands
            scores = jnp.einsum("qd,nd->qn", queries, window, precision="highest")
            return _block_top_k(best_scores, best_documents, scores, documents)

        with jax.named_scope("exact_search"):
            scores, documents = jax.lax.map(search_block, (best[0][0], best[1][0], query_blocks))
        return scores[None], documents[None]

    shard, whole = SPLIT, WHOLE
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(shard, whole, shard, whole, whole), out_specs=shard),
        donate_argnums=0,
    )


def _block_top_k(
    best_scores: jax.Array,  # [q, k], the largest first
    best_documents: jax.Array,  # [q, k] of earlier windows
    scores: jax.Array,  # [q, n]
    documents: jax.Array,  # [n] ascending; -1: none
) -> tuple[jax.Array, jax.Array]:
    """The best k of both, exactly; of equal scores the first document.

    The k largest of n scores lie in those k chunks of CHUNK neighbours that have the largest maxima, and a top-k of
    n / CHUNK maxima, then of k CHUNK scores, is cheaper than one of n. Candidates keep the corpus's order, in which
    top_k resolves ties; the chunk that it leaves out for a tie comes after k others with as large a score.
    """
    block, k = best_scores.shape
    chunked = jnp.where(documents[None] < 0, -jnp.inf, scores).reshape(block, -1, CHUNK)
    maxima = chunked.max(axis=2)
    chunks = jnp.sort(jax.lax.top_k(maxima, min(k, maxima.shape[1]))[1], axis=1)
    chosen = jnp.take_along_axis(chunked, chunks[:, :, None], axis=1).reshape(block, -1)
    chosen_documents = documents.reshape(-1, CHUNK)[chunks].reshape(block, -1)
    top_scores, places = jax.lax.top_k(jnp.concatenate([best_scores, chosen], axis=1), k)
    candidates = jnp.concatenate([best_documents, chosen_documents], axis=1)
    return top_scores, jnp.take_along_axis(candidates, places, axis=1)
