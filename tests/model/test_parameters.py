"""Declarations, initial values and the configuration's errors."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from model.config import DenseConfig, EncoderConfig, ModelConfig, from_hugging_face, to_hugging_face
from model.parameters import abstract, declare, initialize, one_layer
from sharding.layout import SHARD, make_layout, state_spec

ROBERTA = EncoderConfig("roberta", 300, 32, 2, 4, 64, 40, 1, "gelu", 1e-5, 0.1, 0.1, 1, 2, 0.05, True)
MODEL = ModelConfig(ROBERTA, "mean", (DenseConfig(32, 16, True, "tanh"),), True, 40)


def test_initial_values_are_those_of_hugging_face():
    values = initialize(declare(MODEL), jax.random.key(0))
    for name, leaf in values["layers"].items():
        if name.endswith("kernel"):
            assert abs(np.std(leaf) / 0.05 - 1) < 0.05 and abs(np.mean(leaf)) < 0.005
        else:
            assert (leaf == (1 if name.endswith("scale") else 0)).all()
    for name, padding in (("token", 1), ("position", 1)):
        table = values["embeddings"][name]
        assert (table[padding] == 0).all() and abs(np.std(table) / 0.05 - 1) < 0.05
    assert values["embeddings"]["position"].shape == (42, 32)
    assert np.abs(values["dense_0"]["kernel"]).max() <= 1 / np.sqrt(32)
    # A head more or less changes no other parameter.
    alone = initialize(declare(dataclasses.replace(MODEL, dense=())), jax.random.key(0))
    for name in ("embeddings", "layers", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, alone[name], values[name])


def test_abstract_values_and_specs_derive_from_the_declaration():
    declarations = declare(MODEL)
    values = initialize(declarations, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), values) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract(declarations))
    layout = make_layout("parameters", 4)
    specs = jax.tree.map(state_spec("parameters", layout), declarations)
    assert specs["layers"]["up_kernel"] == PartitionSpec(None, SHARD, None)
    assert specs["layers"]["up_bias"] == PartitionSpec(None, SHARD)
    assert specs["embeddings"]["token"] == PartitionSpec(None, SHARD)
    assert jax.tree.map(state_spec("parameters", layout._replace(shard_state="optimizer")), declarations)[
        "layers"]["up_kernel"] == PartitionSpec()
    assert one_layer(declarations["layers"])["qkv_kernel"].shape == (32, 3, 32)


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="max_length=41 is above the position table's 40"):
        dataclasses.replace(MODEL, max_length=41)
    with pytest.raises(ValueError, match="dense_0 takes 33 features, but is given 32"):
        dataclasses.replace(MODEL, dense=(DenseConfig(33, 16, True, "tanh"),))
    with pytest.raises(ValueError, match="dense_0 takes 32 features, but is given 64"):
        dataclasses.replace(MODEL, pooling="cls+mean")
    for pooling in ("median", "mean+", "cls+pooler", "cls mean", ""):
        with pytest.raises(ValueError, match=f"pooling='{re.escape(pooling)}' is not pooler, one of cls, max, mean, "):
            dataclasses.replace(MODEL, pooling=pooling)
    with pytest.raises(ValueError, match="activation='elu' is not one of tanh, identity"):
        DenseConfig(32, 16, True, "elu")
    with pytest.raises(ValueError, match="default_prompt_name='b' is not one of the prompts a"):
        dataclasses.replace(MODEL, prompts=(("a", "a: "),), default_prompt_name="b")
    with pytest.raises(ValueError, match="hidden_size=33 is not divisible by num_heads=4"):
        dataclasses.replace(ROBERTA, hidden_size=33)
    with pytest.raises(ValueError, match="needs an encoder with a pooler"):
        dataclasses.replace(MODEL, encoder=dataclasses.replace(ROBERTA, pooler=False), pooling="pooler")
    values = to_hugging_face(ROBERTA)
    assert values["max_position_embeddings"] == 42
    for change, message in (
        ({"model_type": "t5"}, "model_type='t5'"),
        ({"hidden_act": "swish"}, "activation 'swish'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
    ):
        with pytest.raises(ValueError, match=message):
            from_hugging_face(values | change)
    with pytest.raises(ValueError, match="missing hidden_size, num_hidden_layers"):
        from_hugging_face({k: v for k, v in values.items() if k not in ("hidden_size", "num_hidden_layers")})
