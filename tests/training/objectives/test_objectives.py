"""SCT, L_CD and the mean squared error against plain float64 loops, queue order included, on 1, 2 and 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.parameters import initialize
from sharding.layout import DEVICES, SPLIT, WHOLE, Layout, make_layout, make_mesh
from tests.training.test_parallel import (
    ONE_LAYER,
    assert_trees_close,
    feed,
    first_state,
    make_step,
    pack,
    random_texts,
)
from training.objectives.mse import mse_objective, principal_axes
from training.objectives.objective import Embedded, add_objectives
from training.objectives.sct import QueueOptions, sct_objective, teacher_objective
from training.step import memory_specs

BLOCKS, EXAMPLES, WIDTH = 8, 2, 6  # packing blocks, examples a block
B = BLOCKS * EXAMPLES
OPTIONS = QueueOptions(size=2 * B, num_queues=2, reference_temperature=0.2, temperature=0.3, weight=1.0,
                       dtype=jnp.float32, implementation="xla", seed=5)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_text(values, texts_per_example):
    """[P, K m, d] -> K arrays [B, d], by loops over blocks."""
    return [np.concatenate([block[k * EXAMPLES:(k + 1) * EXAMPLES] for block in values])
            for k in range(texts_per_example)]


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def naive_head(parameters, x):
    for block in range(3):
        up, up_bias, down, down_bias = (np.asarray(parameters[name][block], np.float64)
                                        for name in ("up_kernel", "up_bias", "down_kernel", "down_bias"))
        x = np.maximum(x @ up + up_bias, 0) @ down + down_bias
    return x


def naive_cross_view(students, references, queues, options):
    """The formulas of training/objectives/sct.py: L, and the queues (lists of rows, oldest first) after the step."""
    loss, extended = 0.0, [np.concatenate([queue, rows]) for queue, rows in zip(queues, references)]
    for view in (0, 1):
        queue = extended[view % len(queues)]
        p = softmax(references[view] @ queue.T / options.reference_temperature)
        q = softmax(students[1 - view] @ queue.T / options.temperature)
        loss += options.weight * (p * np.log(p / q)).sum(axis=1).mean()
    return loss, [queue[len(queue) - options.size:] for queue in extended]


def directional_derivative(function, x, direction, step=1e-5):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def loss_and_gradient(objective, mesh, texts_per_example):
    """(parameters, memory, embeddings, references, targets, step) -> loss, gradients, memory: no encoder."""

    def on_each_device(parameters, memory, embeddings, references, targets, step):
        ids = jnp.zeros((*embeddings.shape[:2], 2), jnp.uint32)

        def share(parameters, embeddings):
            seen = Embedded(embeddings, references, targets, ids, texts_per_example, step)
            return objective.loss(parameters, memory, seen)

        (loss, (sums, memory_after)), (parameter_gradient, gradient) = jax.value_and_grad(
            share, argnums=(0, 1), has_aux=True)(parameters, embeddings)
        loss, parameter_gradient, sums = jax.lax.psum((loss, parameter_gradient, sums), DEVICES)
        return loss, gradient, parameter_gradient, memory_after, objective.metrics(sums)

    memory = memory_specs(ONE_LAYER, objective, Layout(mesh))
    return jax.jit(jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(WHOLE, memory, SPLIT, SPLIT, SPLIT, WHOLE),
        out_specs=(WHOLE, SPLIT, WHOLE, memory, WHOLE), check_vma=False))


def random_embeddings(seed, texts_per_example, width=WIDTH):
    shape = (BLOCKS, texts_per_example * EXAMPLES, width)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def oldest_first(queues, step):
    """Our ring of slots before step `step` -> lists of the newest K rows, oldest first."""
    queues = np.asarray(queues, np.float64)
    slots = queues.shape[1]
    order = [(step + slot) % slots for slot in range(slots - 1)]  # slot (step + S - 1) mod S is the next to go
    return [queue[order].reshape(-1, queue.shape[-1]) for queue in queues]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("changes", [{}, {"num_queues": 1, "weight": 0.5}, {"size": 0}, {"head": True}])
def test_sct(devices, changes):
    """Loss, gradient and queues of six steps: three times round a queue of two batches."""
    head = changes.get("head", False)
    options = OPTIONS._replace(**{name: value for name, value in changes.items() if name != "head"})
    objective = sct_objective(WIDTH, B, options, head=head, reference="own", momentum=0.0)
    parameters = initialize(objective.parameters, jax.random.key(3))
    memory = objective.memory(parameters)
    queues = oldest_first(memory["queues"], 0)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(queues), axis=1), 1.0, atol=1e-5)
    run = loss_and_gradient(objective, make_mesh(jax.devices()[:devices]), 2)
    for step in range(6):
        embeddings, references = random_embeddings(step, 2), random_embeddings(100 + step, 2)
        loss, gradient, head_gradient, memory, metrics = run(
            parameters, memory, embeddings, references, None, jnp.int32(step))
        unit_references = [unit(rows) for rows in by_text(references.astype(np.float64), 2)]

        def naive(embeddings, queues=queues, unit_references=unit_references, parameters=parameters):
            views = by_text(np.asarray(embeddings, np.float64), 2)
            students = [unit(naive_head(parameters["sct_head"], view) if head else view) for view in views]
            return naive_cross_view(students, unit_references, queues, options)

        expected, queues = naive(embeddings)
        np.testing.assert_allclose(loss, expected, rtol=2e-5)
        np.testing.assert_allclose(metrics["sct_loss"], expected, rtol=2e-5)
        direction = np.random.default_rng(step).standard_normal(embeddings.shape)
        slope = directional_derivative(lambda x: naive(x)[0], embeddings.astype(np.float64), direction)
        np.testing.assert_allclose((np.asarray(gradient, np.float64) * direction).sum(), slope, rtol=2e-3, atol=1e-6)
        if head:
            kernel = np.asarray(parameters["sct_head"]["up_kernel"], np.float64)
            direction = np.random.default_rng(step).standard_normal(kernel.shape)

            def of_kernel(kernel):
                changed = {"sct_head": parameters["sct_head"] | {"up_kernel": kernel}}
                return naive(embeddings, parameters=changed)[0]  # noqa: B023

            slope = directional_derivative(of_kernel, kernel, direction)
            found = (np.asarray(head_gradient["sct_head"]["up_kernel"], np.float64) * direction).sum()
            np.testing.assert_allclose(found, slope, rtol=2e-3, atol=1e-6)
        for ours, theirs in zip(oldest_first(memory["queues"], step + 1), queues, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_teacher_references(devices):
    objective = teacher_objective(WIDTH, WIDTH, B, OPTIONS)
    memory = objective.memory({})
    queues = oldest_first(memory["teacher_queues"], 0)
    run = loss_and_gradient(objective, make_mesh(jax.devices()[:devices]), 2)
    for step in range(3):
        embeddings, targets = random_embeddings(step, 2), random_embeddings(50 + step, 2)
        loss, gradient, _, memory, _ = run({}, memory, embeddings, None, targets, jnp.int32(step))
        teachers = [unit(rows) for rows in by_text(targets.astype(np.float64), 2)]

        def naive(embeddings, queues=queues, teachers=teachers):
            return naive_cross_view([unit(view) for view in by_text(embeddings, 2)], teachers, queues, OPTIONS)

        expected, queues = naive(embeddings.astype(np.float64))
        np.testing.assert_allclose(loss, expected, rtol=2e-5)
        direction = np.random.default_rng(step).standard_normal(embeddings.shape)
        slope = directional_derivative(lambda x: naive(x)[0], embeddings.astype(np.float64), direction)
        np.testing.assert_allclose((np.asarray(gradient, np.float64) * direction).sum(), slope, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("texts, stored, project, scaled", [
    (1, 1, True, True), (2, 1, False, False), (2, 2, True, False), (2, 2, False, True),
])
def test_mean_squared_error(devices, texts, stored, project, scaled):
    """Every text of an example against the teacher's embedding of its first, whatever texts the teacher was shown."""
    teacher_width = 9 if project else WIDTH
    projection = np.random.default_rng(1).standard_normal((9, WIDTH)).astype(np.float32) if project else None
    objective = mse_objective(WIDTH, teacher_width, normalize_teacher=scaled, projection=projection)
    embeddings, targets = random_embeddings(2, texts), random_embeddings(3, stored, teacher_width)
    run = loss_and_gradient(objective, make_mesh(jax.devices()[:devices]), texts)
    loss, gradient, _, _, metrics = run({}, objective.memory({}), embeddings, None, targets, jnp.int32(0))

    teacher = by_text(targets.astype(np.float64), stored)[0]
    teacher = unit(teacher) if scaled else teacher
    teacher = teacher @ projection.astype(np.float64) if project else teacher

    def errors(embeddings):
        return [((student - teacher) ** 2).mean() for student in by_text(embeddings, texts)]

    np.testing.assert_allclose(loss, sum(errors(embeddings)), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], errors(embeddings)[0], rtol=1e-5)
    direction = np.random.default_rng(4).standard_normal(embeddings.shape)
    slope = directional_derivative(lambda x: sum(errors(x)), embeddings.astype(np.float64), direction)
    np.testing.assert_allclose((np.asarray(gradient, np.float64) * direction).sum(), slope, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
def test_principal_axes(devices):
    """Those of numpy's SVD of the centred sample, in float64; a large mean takes nothing of their precision."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((101, 7)) * np.array([5, 4, 3, 2, 1, 0.5, 0.1]) @ np.linalg.qr(
        rng.standard_normal((7, 7)))[0] + 100
    axes, share = principal_axes(sample.astype(np.float32), 4, make_mesh(jax.devices()[:devices]))
    _, values, expected = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)
    assert axes.shape == (7, 4)
    np.testing.assert_allclose(np.abs((axes * expected[:4].T).sum(axis=0)), 1.0, atol=1e-5)
    np.testing.assert_allclose(share, (values[:4] ** 2).sum() / (values ** 2).sum(), rtol=1e-4)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(4)] > 0).all()
    with pytest.raises(ValueError, match="teacher_pca=8 is more than a sample of 101 embeddings of 7 numbers"):
        principal_axes(sample.astype(np.float32), 8, make_mesh(jax.devices()[:1]))
    with pytest.raises(ValueError, match="teacher_pca=4 is more than a sample of 3"):
        principal_axes(sample[:3].astype(np.float32), 4, make_mesh(jax.devices()[:1]))


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="queue_size=24 is not a multiple of global_batch_size=16"):
        sct_objective(WIDTH, B, OPTIONS._replace(size=24), head=False, reference="own", momentum=0.0).memory({})
    with pytest.raises(ValueError, match="embeddings have 6 numbers, the teacher's 9: give the student a head with "
                                         "--dense=9"):
        teacher_objective(WIDTH, 9, B, OPTIONS)
    with pytest.raises(ValueError, match="embeddings have 6 numbers, their targets 4"):
        mse_objective(WIDTH, 9, normalize_teacher=True, projection=np.zeros((9, 4), np.float32))
    objective = teacher_objective(WIDTH, WIDTH, B, OPTIONS)
    run = loss_and_gradient(objective, make_mesh(jax.devices()[:1]), 2)
    with pytest.raises(ValueError, match="--texts=all"):
        run({}, objective.memory({}), random_embeddings(0, 2), None, random_embeddings(0, 1), jnp.int32(0))
    objective = sct_objective(WIDTH, B, OPTIONS, head=False, reference="own", momentum=0.0)
    run = loss_and_gradient(objective, make_mesh(jax.devices()[:1]), 3)
    with pytest.raises(ValueError, match="an example has 3 texts"):
        run({}, objective.memory({}), random_embeddings(0, 3), random_embeddings(0, 3), None, jnp.int32(0))
    objective = mse_objective(WIDTH, WIDTH, normalize_teacher=True, projection=None)
    run = loss_and_gradient(objective, make_mesh(jax.devices()[:1]), 3)
    with pytest.raises(ValueError, match="an example has 3 texts: give --hard_negatives=false"):
        run({}, objective.memory({}), random_embeddings(0, 3), None, random_embeddings(0, 1), jnp.int32(0))


@functools.cache
def run_steps(devices, reference="own", dropout=True, encode_blocks=0, with_teacher=False):
    """Losses, last state and last metrics of three steps of SCT on packed texts."""
    width, batch_size = ONE_LAYER.embedding_size, 24  # examples of test_parallel's batches
    options = OPTIONS._replace(size=2 * batch_size)
    objective = sct_objective(width, batch_size, options, head=True, reference=reference, momentum=0.5)
    if with_teacher:
        objective = add_objectives(objective, teacher_objective(width, width, batch_size, options))
    layout = make_layout(devices=jax.devices()[:devices])
    optimizer = optax.sgd(0.1)  # Adam would divide small gradients by their rounding
    _, _, train_step = make_step(layout, objective, 2, dropout, encode_blocks, ONE_LAYER, optimizer)
    state, losses = first_state(layout, objective, optimizer, ONE_LAYER), []
    for seed in range(3):
        packed = pack(*random_texts(seed, 2))
        targets = np.random.default_rng(seed).standard_normal((8, 6, width)).astype(np.float32)
        state, metrics = train_step(state, feed(packed, layout, targets if with_teacher else None))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state), metrics


@pytest.mark.parametrize("devices, reference, encode_blocks, with_teacher", [
    (8, "own", 0, True), (2, "own", 2, True), (2, "momentum", 0, False),
])
def test_steps_do_not_depend_on_devices_or_parts(devices, reference, encode_blocks, with_teacher):
    expected, state, metrics = run_steps(1, reference, with_teacher=with_teacher)
    assert ("cd_loss" in metrics) == with_teacher
    losses, other, _ = run_steps(devices, reference, encode_blocks=encode_blocks, with_teacher=with_teacher)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_trees_close(other.parameters, state.parameters)
    assert_trees_close(other.memory, state.memory)


def test_references_differ_by_dropout_and_by_momentum():
    """Without dropout the reference is the embedding itself; a momentum encoder follows with the second step."""
    own, without, momentum = (run_steps(1, **options)[0] for options in (
        {"with_teacher": True}, {"dropout": False, "with_teacher": True}, {"reference": "momentum"}))
    cd_loss = own[0] - momentum[0]  # the same references at first: what remains is the teacher's term
    assert abs(own[0] - without[0]) > 1e-4
    assert abs(own[2] - momentum[2] - cd_loss) > 1e-4
