"""The model that a run starts from: --init's weights or random ones, fewer layers, a new head."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from model.config import DenseConfig, ModelConfig
from model.files.weights import load_model, read_config_only
from model.parameters import Tree, declare, initialize
from training.settings import ModelSettings


class StartingPoint(NamedTuple):
    model: ModelConfig
    parameters: Tree  # float32
    tokenizer_folder: pathlib.Path


def starting_point(settings: ModelSettings, longest_text: int, seed: int) -> StartingPoint:
    """The model that --init and the model's flags describe.

    Raises ValueError if the position table is shorter than `longest_text`, the tokens of a text in training.
    """
    if settings.random_init:
        model, tokenizer_folder = read_config_only(settings.init)
        parameters = initialize(declare(model), jax.random.key(seed))
    else:
        model, parameters, tokenizer_folder, _ = load_model(settings.init)
    if settings.keep_layers:
        model, parameters = keep_layers(model, parameters, settings.keep_layers)
    if settings.dense:
        head = DenseConfig(model.embedding_size, settings.dense, bias=True, activation="tanh")
        model = dataclasses.replace(model, dense=(*model.dense, head))
        name = f"dense_{len(model.dense) - 1}"
        parameters = parameters | initialize({name: declare(model)[name]}, jax.random.key(seed))
    positions = model.encoder.max_positions
    if longest_text > positions:
        raise ValueError(f"--max_length={longest_text}: the position table of {settings.init} holds {positions} "
                         f"tokens; give --max_length={positions} or less")
    if settings.encode_length > positions:
        logging.info("encode_length=%d is above the position table: the exported model reads %d tokens",
                     settings.encode_length, positions)
    model = dataclasses.replace(model, pooling=settings.pooling or model.pooling, normalize=settings.normalize,
                                max_length=min(settings.encode_length, positions))
    return StartingPoint(model, parameters, tokenizer_folder)


def keep_layers(model: ModelConfig, parameters: Tree, kept: tuple[int, ...]) -> tuple[ModelConfig, Tree]:
    """The model with only the layers that are kept, in the order given."""
    count = model.encoder.num_layers
    if max(kept) >= count:
        raise ValueError(f"--keep_layers={','.join(map(str, kept))}: --init has the layers 0 to {count - 1}")
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, num_layers=len(kept)))
    rows = np.array(kept)
    return model, parameters | {"layers": {name: leaf[rows] for name, leaf in parameters["layers"].items()}}
