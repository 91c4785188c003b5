"""The model that a run starts from: --init's weights or random ones, fewer layers, a new head."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from flags import Error
from model.config import DenseConfig, ModelConfig
from model.files.modules import capped_length
from model.files.weights import load_model, read_config_only
from model.parameters import Tree, declare, initialize
from training.settings import ModelSettings

ANY_LENGTH = 3  # of a configuration's texts: it fits into every position table


class StartingPoint(NamedTuple):
    model: ModelConfig
    parameters: Tree  # float32


def check_longest_text(init: str, max_length: int) -> None:
    """Raises flags.Error if the position table of --init holds less than max_length tokens. Reads no weights."""
    positions = read_config_only(init, max_length=ANY_LENGTH)[0].encoder.max_positions
    if max_length > positions:
        raise Error(f"--max_length={max_length}: the position table of {init} holds {positions} tokens; give "
                    f"--max_length={positions} or less")


def starting_model(settings: ModelSettings, prompts: dict[str, str]) -> tuple[ModelConfig, pathlib.Path]:
    """(the model that --init and the model's flags describe, tokenizer folder). Reads no weights: no pooler layer.

    Its prompts are those of the training data, not --init's.
    """
    model, tokenizer_folder = read_config_only(settings.init, max_length=ANY_LENGTH)
    length = capped_length(settings.encode_length, model.encoder, f"--encode_length={settings.encode_length}")
    model = dataclasses.replace(
        model, max_length=length, prompts=tuple(prompts.items()), default_prompt_name="")
    return _changed(model, settings), tokenizer_folder


def starting_point(settings: ModelSettings, model: ModelConfig, seed: int) -> StartingPoint:
    """The weights that --init and the model's flags ask for, of the model that starting_model describes."""
    if settings.random_init:
        return StartingPoint(model, initialize(declare(model), jax.random.key(seed)))
    loaded = load_model(settings.init, max_length=model.max_length)
    encoder = dataclasses.replace(model.encoder, pooler=loaded.config.encoder.pooler)
    model, parameters = dataclasses.replace(model, encoder=encoder), loaded.parameters
    if settings.keep_layers:
        rows = np.array(settings.keep_layers)
        parameters = parameters | {"layers": {name: leaf[rows] for name, leaf in parameters["layers"].items()}}
    new = {name: declared for name, declared in declare(model).items() if name not in parameters}
    return StartingPoint(model, parameters | initialize(new, jax.random.key(seed)))


def _changed(model: ModelConfig, settings: ModelSettings) -> ModelConfig:
    """--init's model with the layers that are kept, the new head, and the pooling of the flags."""
    if settings.keep_layers:
        count = model.encoder.num_layers
        if max(settings.keep_layers) >= count:
            kept = ",".join(map(str, settings.keep_layers))
            raise ValueError(f"--keep_layers={kept}: --init has the layers 0 to {count - 1}")
        model = dataclasses.replace(
            model, encoder=dataclasses.replace(model.encoder, num_layers=len(settings.keep_layers)))
    if settings.dense:
        head = DenseConfig(model.embedding_size, settings.dense, bias=True, activation="tanh")
        model = dataclasses.replace(model, dense=(*model.dense, head))
    if settings.pooling == "pooler" and not settings.random_init:  # starting_point sees if the weights have one
        model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, pooler=True))
    return dataclasses.replace(model, pooling=settings.pooling or model.pooling, normalize=settings.normalize)
