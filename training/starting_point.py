"""The model that a run starts from: --init's weights or random ones, fewer layers, a new head."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from flags import Error
from model.config import DenseConfig, EncoderConfig, ModelConfig
from model.files.modules import capped_length
from model.files.weights import load_model, read_config_only
from model.parameters import Tree, declare, initialize
from training.settings import ModelSettings


class StartingPoint(NamedTuple):
    model: ModelConfig
    parameters: Tree  # float32
    tokenizer_folder: pathlib.Path


def check_longest_text(init: str, max_length: int) -> None:
    """Raises flags.Error if the position table of --init holds less than max_length tokens. Reads no weights."""
    positions = _encoder_of(init).max_positions
    if max_length > positions:
        raise Error(f"--max_length={max_length}: the position table of {init} holds {positions} tokens; give "
                    f"--max_length={positions} or less")


def starting_point(settings: ModelSettings, seed: int) -> StartingPoint:
    """The model that --init and the model's flags describe."""
    encode_length = capped_length(
        settings.encode_length, _encoder_of(settings.init), f"--encode_length={settings.encode_length}")
    if settings.random_init:
        model, tokenizer_folder = read_config_only(settings.init, max_length=encode_length)
        parameters = initialize(declare(model), jax.random.key(seed))
    else:
        model, parameters, tokenizer_folder, _ = load_model(settings.init, max_length=encode_length)
    if settings.keep_layers:
        model, parameters = keep_layers(model, parameters, settings.keep_layers)
    if settings.dense:
        head = DenseConfig(model.embedding_size, settings.dense, bias=True, activation="tanh")
        model = dataclasses.replace(model, dense=(*model.dense, head))
        name = f"dense_{len(model.dense) - 1}"
        parameters = parameters | initialize({name: declare(model)[name]}, jax.random.key(seed))
    model = dataclasses.replace(model, pooling=settings.pooling or model.pooling, normalize=settings.normalize)
    return StartingPoint(model, parameters, tokenizer_folder)


def _encoder_of(init: str) -> EncoderConfig:
    return read_config_only(init, max_length=3)[0].encoder  # any length that fits: the model's own does not matter


def keep_layers(model: ModelConfig, parameters: Tree, kept: tuple[int, ...]) -> tuple[ModelConfig, Tree]:
    """The model with only the layers that are kept, in the order given."""
    count = model.encoder.num_layers
    if max(kept) >= count:
        raise ValueError(f"--keep_layers={','.join(map(str, kept))}: --init has the layers 0 to {count - 1}")
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, num_layers=len(kept)))
    rows = np.array(kept)
    return model, parameters | {"layers": {name: leaf[rows] for name, leaf in parameters["layers"].items()}}
