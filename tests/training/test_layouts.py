"""Every layout takes the same training steps, from whole parameters or from shares of them."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import DenseConfig
from model.parameters import declare
from sharding import layout as layouts
from sharding.layout import host_copy, make_layout
from tests.training.test_parallel import (
    MODEL,
    ONE_LAYER,
    assert_trees_close,
    feed,
    first_state,
    make_objective,
    make_step,
    pack,
    random_texts,
)
from training.checkpoint import Checkpointer, Progress
from training.objectives.mse import mse_objective
from training.objectives.sct import QueueOptions, sct_objective

STEPS = 5
HEADS = dataclasses.replace(ONE_LAYER, dense=(DenseConfig(32, 16, True, "tanh"),))
SHARDED = ("optimizer", "parameters")


def sct(reference):
    options = QueueOptions(48, 2, 0.04, 0.05, 1.0, jnp.float32, "xla", 0)
    return sct_objective(32, 24, options, head=True, reference=reference, momentum=0.5)


def hpd():
    projection = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 16)))[0].astype(np.float32)
    return mse_objective(16, 24, normalize_teacher=True, projection=projection)


CASES = {  # name -> objective, texts per example, options of make_step
    "pairs": lambda: (make_objective(True), 2, {"dropout": True}),
    "triplets": lambda: (make_objective(False), 3, {"dropout": True, "clip_norm": 0.1, "model": ONE_LAYER}),
    "ring": lambda: (make_objective(True, "ring"), 2, {"dropout": False, "model": ONE_LAYER}),
    "learned scale": lambda: (make_objective(True, learn_scale=True), 2, {"dropout": False, "remat": True}),
    "sct": lambda: (sct("own"), 2, {"dropout": True, "model": ONE_LAYER}),
    "sct, momentum": lambda: (sct("momentum"), 2, {"dropout": True, "model": ONE_LAYER}),
    "hpd": lambda: (hpd(), 2, {"dropout": False, "model": HEADS}),
}


@functools.cache
def run(case, shard_state="none", devices=8, shard_devices=0, encode_blocks=0, dtype=jnp.float32):
    """Losses and gradient norms of some steps, and the last train state on the host."""
    objective, texts_per_example, options = CASES[case]()
    layout = make_layout(shard_state, shard_devices, jax.devices()[:devices])
    model = options.get("model", MODEL)
    _, optimizer, train_step = make_step(
        layout, objective, texts_per_example, encode_blocks=encode_blocks, dtype=dtype, **options)
    state, metrics = first_state(layout, objective, optimizer, model), []
    targets = np.random.default_rng(0).standard_normal((8, 3, 24)).astype(np.float32) if case == "hpd" else None
    batch = feed(pack(*random_texts(0, texts_per_example)), layout, targets)
    for _ in range(STEPS):
        state, of_step = train_step(state, batch)
        metrics.append([float(of_step["loss"]), float(of_step["gradient_norm"])])
    return metrics, host_copy(state)


def assert_same_run(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual[0], expected[0], rtol=tolerance)
    assert_trees_close(actual[1].parameters, expected[1].parameters, tolerance)
    assert_trees_close(actual[1].optimizer, expected[1].optimizer, 10 * tolerance)
    assert_trees_close(actual[1].memory, expected[1].memory, tolerance)


@pytest.mark.parametrize("shard_state, shard_devices", [
    ("optimizer", 2), ("optimizer", 8), ("parameters", 1), ("parameters", 2), ("parameters", 4), ("parameters", 8)])
def test_any_shape_of_the_mesh(shard_state, shard_devices):
    assert_same_run(run("pairs", shard_state, shard_devices=shard_devices), run("pairs"))


@pytest.mark.parametrize("case", [case for case in CASES if case != "pairs"])
@pytest.mark.parametrize("shard_state", SHARDED)
def test_any_objective(shard_state, case):
    assert_same_run(run(case, shard_state, shard_devices=4), run(case))


@pytest.mark.parametrize("shard_state", SHARDED)
def test_gradient_caching(shard_state):
    assert_same_run(run("pairs", shard_state, 4, 2, encode_blocks=1), run("pairs", devices=4))


# The temperature of SCT, 0.04, multiplies rounding by 25: the losses of its layouts differ by up to 1.8e-6.
@pytest.mark.parametrize("case, tolerance", [("pairs", 1e-6), ("sct, momentum", 2e-6)])
def test_a_checkpoint_resumes_under_any_layout(tmp_path, case, tolerance):
    """Saved split over 8 devices; read by 1, 2 and 8 devices in other layouts. The loss goes on as if never stopped."""
    losses = [loss for loss, _ in run(case)[0]]
    objective, texts_per_example, options = CASES[case]()
    model, packed = options.get("model", MODEL), pack(*random_texts(0, texts_per_example))

    def go_on(layout, state_of, steps):
        _, optimizer, train_step = make_step(layout, objective, texts_per_example, **options)
        state, found = state_of(first_state(layout, objective, optimizer, model, seed=2)), []
        for _ in range(steps):
            state, metrics = train_step(state, feed(packed, layout))
            found.append(float(metrics["loss"]))
        return state, found

    layout = make_layout("parameters", 4)
    first, _ = go_on(layout, lambda _: first_state(layout, objective, make_step(
        layout, objective, texts_per_example, **options)[1], model), 2)
    checkpoints = Checkpointer(tmp_path, {}, keep=1)
    checkpoints.save(2, first, Progress(None, None, None))
    checkpoints.close()
    checkpoints = Checkpointer(tmp_path, {}, keep=1)
    for shard_state, shard_devices, devices in (("none", 0, 1), ("optimizer", 8, 8), ("parameters", 2, 2)):
        other = make_layout(shard_state, shard_devices, jax.devices()[:devices])
        _, found = go_on(other, lambda state: checkpoints.restore(state)[0], STEPS - 2)
        np.testing.assert_allclose(found, losses[2:], rtol=tolerance)
    checkpoints.close()


def test_bfloat16():
    """Kernels are rounded to bfloat16 in every layout, and gradients are summed in float32."""
    for shard_state in SHARDED:
        actual, expected = (run("pairs", *case, dtype=jnp.bfloat16) for case in ((shard_state, 8, 4), ("none",)))
        assert_same_run(actual, expected, 0.02)


@pytest.mark.parametrize("changes", [{"hidden": ()}, {"vocabulary": layouts.SHARD}])
def test_sharding_another_axis_is_one_line_of_the_table(changes, monkeypatch):
    for axis, over in changes.items():
        monkeypatch.setitem(layouts.AXES, axis, over)
    expected = run("pairs")
    specs = jax.tree.map(layouts.state_spec("parameters", make_layout("parameters", 2)), declare(MODEL))
    assert layouts.shard_axis(specs["layers"]["up_kernel"]) == (1 if changes.keys() == {"vocabulary"} else 2)
    assert layouts.shard_axis(specs["embeddings"]["token"]) == (0 if changes.keys() == {"vocabulary"} else None)
    uncached = run.__wrapped__  # the table is another one
    assert_same_run(uncached("pairs", "parameters", shard_devices=2), expected)


def test_what_is_sent():
    """Split gradients are scattered, and only what is whole is reduced everywhere."""
    sent = {}
    for shard_state in ("none", *SHARDED):
        objective, texts_per_example, options = CASES["ring"]()
        layout = make_layout(shard_state)
        loss_and_gradient, optimizer, _ = make_step(layout, objective, texts_per_example, **options)
        state = first_state(layout, objective, optimizer, ONE_LAYER)
        batch = feed(pack(*random_texts(0, texts_per_example)), layout)
        text = jax.jit(loss_and_gradient).lower(state.parameters, {}, batch, state.step).as_text()
        kinds = re.findall(r'"stablehlo\.(\w+)"\(.*replica_groups = dense<[^>]*> : tensor<\d+x8xi64>', text)
        sent[shard_state] = collections.Counter(kinds)
    split = len(jax.tree.leaves(declare(ONE_LAYER)))
    none, optimizer, parameters = (sent[shard_state] for shard_state in ("none", *SHARDED))
    assert none["reduce_scatter"] == 0 and optimizer["reduce_scatter"] == split
    assert optimizer["all_reduce"] == none["all_reduce"] - split
    assert optimizer["all_gather"] == none["all_gather"]
    assert parameters["reduce_scatter"] == split - 1 and parameters["all_to_all"] == 2, "tokens are exchanged"
    assert parameters["all_reduce"] == optimizer["all_reduce"]
    assert parameters["all_gather"] == none["all_gather"] + (split - 1) + 1, "each array once, and the tokens' ids"
