import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from inference import search
from inference.search import CHUNK, QUERY_BLOCK, exact_search, window_rows
from tests.conftest import REPOSITORY, with_devices


def unit_rows(generator, count, width):
    rows = generator.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def windows_of(corpus, rows):
    return ((first, corpus[first:first + rows]) for first in range(0, len(corpus), rows))


def best_by_argsort(queries, corpus, k):
    """In float64, of equal scores the first document; -inf and -1 where there are fewer than k documents."""
    scores = queries.astype(np.float64) @ corpus.T.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, max(0, k - len(corpus))))
    return (np.pad(np.take_along_axis(scores, order, axis=1), missing, constant_values=-np.inf),
            np.pad(order, missing, constant_values=-1))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("num_queries, documents, k, rows", [
    (7, 1237, 5, 500),
    (QUERY_BLOCK + 3, 2501, 20, 811),  # two blocks of queries; more chunks than k, and fewer
    (3, 10, 25, 4),  # k is larger than the corpus
    (1, 1, 1, 1),
])
def test_equal_to_argsort_in_float64(devices, num_queries, documents, k, rows):
    generator = np.random.default_rng(documents)
    queries, corpus = unit_rows(generator, num_queries, 19), unit_rows(generator, documents, 19)
    scores, found = exact_search(queries, k, windows_of(corpus, rows), rows, jax.devices()[:devices])
    expected_scores, expected = best_by_argsort(queries, corpus, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert scores.dtype == np.float32 and found.dtype == np.int32


@pytest.mark.parametrize("devices", [1, 8])
def test_finds_planted_answers_wherever_they_are(devices):
    """Each query's answers are itself at falling lengths, strewn over all windows and devices, among unit vectors."""
    generator = np.random.default_rng(2)
    documents, k, num_queries = 3001, 6, 40
    queries = np.eye(num_queries, dtype=np.float32)
    corpus = unit_rows(generator, documents, num_queries)
    places = generator.permutation(documents)[:num_queries * k].reshape(num_queries, k)
    lengths = np.arange(9, 9 - k, -1, dtype=np.float32)
    corpus[places] = lengths[:, None] * queries[:, None]
    scores, found = exact_search(queries, k, windows_of(corpus, 700), 700, jax.devices()[:devices])
    np.testing.assert_array_equal(found, places)
    np.testing.assert_array_equal(scores, np.tile(lengths, (num_queries, 1)))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("k", [1, 10, 37])
def test_of_equal_scores_the_first_document_is_first(devices, k):
    """Small integers: products are exact, and hundreds of documents have each score."""
    generator = np.random.default_rng(k)
    queries = generator.integers(-1, 2, (9, 3)).astype(np.float32)
    corpus = generator.integers(-2, 3, (3000, 3)).astype(np.float32)
    scores, found = exact_search(queries, k, windows_of(corpus, 1300), 1300, jax.devices()[:devices])
    expected_scores, expected = best_by_argsort(queries, corpus, k)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(found, expected)


def test_windows_of_any_size_and_none():
    generator = np.random.default_rng(4)
    queries, corpus = unit_rows(generator, 4, 8), unit_rows(generator, 300, 8)
    ragged = [(0, corpus[:1]), (1, corpus[1:150]), (150, corpus[150:])]
    np.testing.assert_array_equal(exact_search(queries, 7, ragged, 150)[1], best_by_argsort(queries, corpus, 7)[1])
    assert (exact_search(queries, 2, [], 5)[1] == -1).all()
    with pytest.raises(ValueError, match="a window of 149 documents, but rows=148"):
        exact_search(queries, 7, ragged, 148)


def test_products_keep_all_bits_of_float32():
    """A product in bfloat16 or TF32 could not tell these documents apart."""
    corpus = np.float32([[1], [1 + 2**-22], [1 + 2**-23]])
    scores, found = exact_search(np.ones((1, 1), np.float32), 3, [(0, corpus)], 3)
    np.testing.assert_array_equal(found, [[1, 2, 0]])
    np.testing.assert_array_equal(scores[0], corpus[[1, 2, 0], 0])
    mesh = search.make_mesh(jax.devices()[:2])
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
        ((2, 1, 4, 3), np.float32), ((2, 1, 4, 3), np.int32), ((1, 4, 8), np.float32), ((2 * CHUNK, 8), np.float32),
        ((), np.int32), ((), np.int32))]
    program = search._compiled(mesh).lower(tuple(shapes[:2]), *shapes[2:]).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in program


@pytest.mark.parametrize("documents, processes, rows", [
    (1, 1, 1024), (32768, 1, 32768), (32769, 1, 17408), (100, 8, 1024), (1_000_000, 1, 32768), (1_000_000, 64, 16384),
    (10_000, 8, 2048),
])
def test_window_rows(documents, processes, rows):
    assert window_rows(documents, processes) == rows


PROCESS = """
import sys
import numpy as np
import jax
from inference.search import exact_search
from sharding.processes import initialize_processes

folder, port, process = sys.argv[1:]
initialize_processes(f"localhost:{port}", 2, int(process))
data = np.load(f"{folder}/data.npz")
corpus, rows = data["corpus"], 90
own = [(first, corpus[first:first + rows]) for number, first in enumerate(range(0, len(corpus), rows))
       if number % 2 == int(process)]
scores, documents = exact_search(data["queries"], 12, own, rows)
np.savez(f"{folder}/found-{process}.npz", scores=scores, documents=documents)
"""


def test_two_processes_find_the_same_as_one(tmp_path, processes):
    generator = np.random.default_rng(5)
    queries, corpus = unit_rows(generator, 6, 8), unit_rows(generator, 401, 8)
    np.savez(tmp_path / "data.npz", queries=queries, corpus=corpus)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = [
        processes.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(port), str(process)], cwd=REPOSITORY,
                         env=with_devices(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for process in range(2)
    ]
    for process in started:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output[-4000:]
    expected_scores, expected = best_by_argsort(queries, corpus, 12)
    for process in range(2):
        found = np.load(tmp_path / f"found-{process}.npz")
        np.testing.assert_array_equal(found["documents"], expected)
        np.testing.assert_allclose(found["scores"], expected_scores, atol=1e-6)
