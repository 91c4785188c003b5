"""The loss and its gradient are those of the global batch, on any number of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.packing import pack_blocks
from model.config import EncoderConfig, ModelConfig
from model.parameters import declare, initialize
from model.pooling import embed
from sharding.layout import make_layout, place, replicate, shard_blocks
from training.objectives.contrastive import contrastive_objective
from training.objectives.objective import StepBatch
from training.optimizer import learning_rate_schedule, make_optimizer
from training.settings import OptimizerSettings
from training.step import initial_state, make_loss_and_gradient, make_train_step, state_specs

BLOCKS, EXAMPLES, ROW_LENGTH, SCALE = 8, 3, 32, 20.0  # packing blocks, examples a block
MODEL = ModelConfig(
    encoder=EncoderConfig(
        family="bert", vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=32,
        type_vocab_size=2, activation="gelu", layer_norm_epsilon=1e-12, hidden_dropout=0.1, attention_dropout=0.1,
        pad_token_id=0, position_offset=0, initializer_range=0.2, pooler=False,
    ),
    pooling="mean", dense=(), normalize=True, max_length=32,
)
ONE_LAYER = dataclasses.replace(MODEL, encoder=dataclasses.replace(MODEL.encoder, num_layers=1))
"""For tests that need no second layer: on the CPU each layer is compiled."""


def random_texts(seed: int, texts_per_example: int, missing_negatives: bool = False):
    """Token arrays [BLOCKS][slots] in slot order, and their ids; a few texts come twice in the global batch."""
    rng = np.random.default_rng(seed)
    texts = [[rng.integers(5, 50, rng.integers(3, 20)).astype(np.int32) for _ in range(texts_per_example * EXAMPLES)]
             for _ in range(BLOCKS)]
    texts[5][EXAMPLES] = texts[0][EXAMPLES]  # the same positive in two blocks
    texts[7][0] = texts[2][1]  # the same query in two blocks
    texts[3][1] = texts[6][EXAMPLES + 2]  # one example's query is another one's positive
    if missing_negatives:
        for block in (0, 4):
            texts[block][2 * EXAMPLES] = np.zeros(0, np.int32)
    names = {}
    ids = [[names.setdefault(text.tobytes(), len(names) + 1) if text.size else 0 for text in block] for block in texts]
    return texts, np.array(ids, np.uint64)


def pack(texts, ids, row_length=ROW_LENGTH):
    flat = np.concatenate([text for block in texts for text in block])
    lengths = np.array([[text.size for text in block] for block in texts])
    return pack_blocks(flat, lengths, ids, row_length, pad_id=0)[0]


def naive_masks(ids, texts_per_example):
    """(pairs that are excluded, those of them that are false negatives), [B, keys], from loops over ids."""
    slot_ids = [[ids[block][k * EXAMPLES + i] for block in range(BLOCKS) for i in range(EXAMPLES)]
                for k in range(texts_per_example)]
    B, key_ids = BLOCKS * EXAMPLES, [text_id for slot in slot_ids[1:] for text_id in slot]
    excluded = np.zeros((B, len(key_ids)), bool)
    for i in range(B):
        for j, key_id in enumerate(key_ids):
            same_query = j < B and slot_ids[0][j] == slot_ids[0][i]
            excluded[i, j] = j != i and (key_id in (0, slot_ids[0][i], slot_ids[1][i]) or same_query)
    return excluded, excluded & (np.array(key_ids) != 0)


def naive_loss(parameters, texts, excluded, texts_per_example, symmetric):
    """The loss, and the [B, keys] similarities, from one text a row, without packing or sharding."""
    slots = [[texts[block][k * EXAMPLES + i] for block in range(BLOCKS) for i in range(EXAMPLES)]
             for k in range(texts_per_example)]
    flat = [text for slot in slots for text in slot]
    one_a_row = [[text] for text in flat]
    packed = pack(one_a_row, np.ones((len(flat), 1), np.uint64))
    embeddings = embed(parameters, MODEL, packed).reshape(texts_per_example, BLOCKS * EXAMPLES, -1)
    queries, keys = embeddings[0], embeddings[1:].reshape(-1, embeddings.shape[-1])
    similarities = SCALE * jnp.matmul(queries, keys.T, precision="highest")
    masked = jnp.where(excluded, -jnp.inf, similarities)
    rows = jax.nn.logsumexp(masked, axis=1) - jnp.diag(similarities)
    columns = jax.nn.logsumexp(masked[:, :len(queries)], axis=0) - jnp.diag(similarities)
    return ((rows + columns) / 2).mean() if symmetric else rows.mean(), similarities


def naive_metrics(similarities, excluded, left_out):
    """One query at a time."""
    hardest = [max(row[j] for j in range(len(row)) if j != i and not excluded[i, j])
               for i, row in enumerate(similarities)]
    positive = np.diag(similarities)
    return {"accuracy_at_1": np.mean(positive > hardest), "positive_similarity": np.mean(positive) / SCALE,
            "hardest_negative_similarity": np.mean(hardest) / SCALE, "share_left_out": left_out.mean()}


def make_objective(symmetric, key_exchange="all_gather", learn_scale=False):
    return contrastive_objective(
        MODEL, scale=SCALE, learn_scale=learn_scale, symmetric="always" if symmetric else "never",
        key_exchange=key_exchange, dtype=jnp.float32, implementation="xla",
    )


def make_step(layout, objective, texts_per_example, dropout, encode_blocks=0, model=MODEL, optimizer=None,
              clip_norm=1.0, dtype=jnp.float32, remat=False):
    """Loss and gradient, optimizer, train step; the optimizer is AdamW unless another one is given."""
    loss_and_gradient = make_loss_and_gradient(
        model, layout, objective, texts_per_example=texts_per_example, dropout_seed=3 if dropout else None,
        dtype=dtype, remat=remat, encode_blocks=encode_blocks,
    )
    settings = OptimizerSettings(
        learning_rate=1e-2, warmup_steps=1, num_steps=10, adam_epsilon=1e-2, weight_decay=0.01,
        clip_norm=clip_norm)
    schedule = learning_rate_schedule(settings)
    # A large epsilon: otherwise Adam divides small gradients by their rounding, and makes it large.
    optimizer = optimizer or make_optimizer(settings, schedule)
    train_step = make_train_step(model, layout, objective, loss_and_gradient, optimizer, schedule)
    return loss_and_gradient, optimizer, train_step


def first_state(layout, objective, optimizer, model=MODEL, seed=1):
    """The train state before the first step, placed as the layout says."""
    specs = state_specs(model, objective, optimizer, layout)
    parameters = initialize(declare(model) | objective.parameters, jax.random.key(seed))
    return place(initial_state(parameters, optimizer, objective), specs, layout.mesh)


def feed(packed, layout, targets=None):
    return shard_blocks(StepBatch(packed, targets), layout.mesh)


def assert_trees_close(actual, expected, tolerance=1e-5):
    """Equal to `tolerance` relative to the largest element of each leaf."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.2e}"


@pytest.mark.parametrize("texts_per_example, symmetric", [(2, True), (2, False), (3, False), (3, True)])
def test_gradient_is_that_of_the_global_mean_loss(texts_per_example, symmetric):
    texts, ids = random_texts(texts_per_example, texts_per_example, missing_negatives=texts_per_example == 3)
    parameters = initialize(declare(MODEL), jax.random.key(0))
    excluded, left_out = naive_masks(ids, texts_per_example)
    naive = functools.partial(
        naive_loss, texts=texts, excluded=excluded, texts_per_example=texts_per_example, symmetric=symmetric)
    (loss, similarities), gradient = jax.jit(jax.value_and_grad(naive, has_aux=True))(parameters)
    metrics = naive_metrics(np.asarray(similarities, np.float64), excluded, left_out)
    assert 0 < metrics["accuracy_at_1"] < 1 and metrics["share_left_out"] > 0
    for count in (1, 2, 8):
        layout = make_layout(devices=jax.devices()[:count])
        loss_and_gradient, _, _ = make_step(layout, make_objective(symmetric), texts_per_example, dropout=False)
        batch = feed(pack(texts, ids), layout)
        ours = jax.jit(loss_and_gradient)(replicate(parameters, layout.mesh), {}, batch, jnp.zeros((), jnp.int32))
        np.testing.assert_allclose(ours[0], loss, rtol=1e-5)
        assert_trees_close(ours[1], gradient)
        assert ours[2].keys() == metrics.keys()
        for name, expected in metrics.items():
            np.testing.assert_allclose(ours[2][name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("texts_per_example", [2, 3])
def test_steps_do_not_depend_on_the_number_of_devices(texts_per_example):
    """With dropout: without it, test_gradient_is_that_of_the_global_mean_loss compares the gradients."""
    batches = [pack(*random_texts(seed, texts_per_example)) for seed in range(4)]
    results = []
    for count in (1, 2, 8):
        layout = make_layout(devices=jax.devices()[:count])
        objective = make_objective(symmetric=texts_per_example == 2)
        _, optimizer, train_step = make_step(layout, objective, texts_per_example, dropout=True, model=ONE_LAYER)
        state = first_state(layout, objective, optimizer, ONE_LAYER)
        losses = []
        for packed in batches:
            state, metrics = train_step(state, feed(packed, layout))
            losses.append(float(metrics["loss"]))
        results.append((losses, jax.device_get(state.parameters)))
    for losses, parameters in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], rtol=1e-5)
        assert_trees_close(parameters, results[0][1])


@functools.cache
def jitted_gradient(devices, texts_per_example, encode_blocks):
    loss_and_gradient, _, _ = make_step(make_layout(devices=jax.devices()[:devices]), make_objective(True),
                                        texts_per_example, True, encode_blocks, ONE_LAYER)
    return jax.jit(loss_and_gradient)


@pytest.mark.parametrize("texts_per_example", [2, 3])
@pytest.mark.parametrize("devices, encode_blocks", [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_encoding_in_parts_gives_the_gradient_of_the_whole(texts_per_example, devices, encode_blocks):
    """Gradient caching, with dropout: the second pass must draw the masks of the first."""
    packed = pack(*random_texts(7, texts_per_example))
    layout = make_layout(devices=jax.devices()[:devices])
    parameters = replicate(initialize(declare(ONE_LAYER), jax.random.key(1)), layout.mesh)
    whole, in_parts = (
        jitted_gradient(devices, texts_per_example, blocks)(parameters, {}, feed(packed, layout), jnp.int32(3))
        for blocks in (0, encode_blocks)
    )
    np.testing.assert_allclose(in_parts[0], whole[0], rtol=1e-6)
    assert_trees_close(in_parts[1], whole[1])


def test_dropout_changes_the_loss():
    packed = pack(*random_texts(0, 2))
    layout = make_layout(devices=jax.devices()[:1])
    parameters = replicate(initialize(declare(ONE_LAYER), jax.random.key(1)), layout.mesh)
    losses = [
        jax.jit(make_step(layout, make_objective(True), 2, dropout, model=ONE_LAYER)[0])(
            parameters, {}, feed(packed, layout), jnp.int32(step))[0]
        for dropout, step in ((False, 0), (True, 0), (True, 1))
    ]
    assert len({float(loss) for loss in losses}) == 3


def test_one_reduction_a_step():
    """Loss, gradient of all parameters and metric sums are reduced together: no other all-reduce has their size."""
    layout = make_layout()
    loss_and_gradient, _, _ = make_step(layout, make_objective(True), 2, dropout=True, model=ONE_LAYER)
    parameters = replicate(initialize(declare(ONE_LAYER), jax.random.key(1)), layout.mesh)
    batch = feed(pack(*random_texts(0, 2)), layout)
    text = jax.jit(loss_and_gradient).lower(parameters, {}, batch, jnp.int32(0)).as_text()
    reductions = text.count("stablehlo.all_reduce")
    leaves = len(jax.tree.leaves(parameters))
    # One for each leaf, for the loss and for five sums, which XLA combines; and those of the columns' log-sum-exps and
    # their gradient.
    assert leaves + 6 <= reductions <= leaves + 6 + 4, reductions


def test_learned_scale():
    """It starts at --scale, and its gradient is the slope of the loss, on 1 and on 8 devices."""
    texts = random_texts(4, 2)
    losses, slopes, gradients = [], [], []
    for count in (1, 8):
        layout = make_layout(devices=jax.devices()[:count])
        objective = make_objective(True, learn_scale=True)
        loss_and_gradient, _, _ = make_step(layout, objective, 2, dropout=False, model=ONE_LAYER)
        parameters = initialize(declare(ONE_LAYER) | objective.parameters, jax.random.key(0))
        np.testing.assert_allclose(np.exp(parameters["contrastive"]["log_scale"]), SCALE, rtol=1e-6)
        run, batch = jax.jit(loss_and_gradient), feed(pack(*texts), layout)

        def at(change, run=run, batch=batch, parameters=parameters, layout=layout):
            log_scale = parameters["contrastive"]["log_scale"] + change
            changed = replicate(parameters | {"contrastive": {"log_scale": log_scale}}, layout.mesh)
            return run(changed, {}, batch, jnp.int32(0))

        loss, gradient, metrics, _ = at(0.0)
        losses.append(loss)
        slopes.append((at(0.01)[0] - at(-0.01)[0]) / 0.02)
        gradients.append(gradient["contrastive"]["log_scale"])
        np.testing.assert_allclose(metrics["scale"], SCALE, rtol=1e-6)
    fixed, _, _ = make_step(layout, make_objective(True), 2, dropout=False, model=ONE_LAYER)
    model_alone = {name: parameters[name] for name in declare(ONE_LAYER)}
    expected = jax.jit(fixed)(replicate(model_alone, layout.mesh), {}, batch, jnp.int32(0))[0]
    np.testing.assert_allclose(losses, [expected] * 2, rtol=1e-5)
    np.testing.assert_allclose(gradients, slopes, rtol=1e-3)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-5)
