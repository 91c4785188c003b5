"""Reading models (ours, Hugging Face's, sentence-transformers') into float32 parameters, and writing ours.

Ours is a folder with allpairs.json (ModelConfig, and how a checkpoint that was converted stored the tensors),
parameters.safetensors (flat names such as "layers/qkv_kernel", float32) and the tokenizer's files. left_out.safetensors
holds what the checkpoint had beside the encoder.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data.files import new_folder, read_json, set_default_permissions, write_json
from data.tokenizer import COMPANION_FILES, TextTokenizer
from model.config import DenseConfig, EncoderConfig, ModelConfig, from_hugging_face
from model.files.folders import OURS, find_model
from model.files.modules import Modules, capped_length, read_max_length, read_modules
from model.files.names import BUFFERS, canonical_name, flatten, from_tensors, is_beside, tensor_shapes, unflatten
from model.parameters import Tree, declare

PARAMETERS = "parameters.safetensors"
TOKENIZER_FILES = ("tokenizer.json", *COMPANION_FILES)
LEFT_OUT = "left_out.safetensors"
_CHECKPOINTS = tuple(
    f"{file}{index}" for file in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
_FLOATS = ("float32", "float16", "bfloat16")  # widening to float32 and back is exact


class Origin(NamedTuple):
    """What `convert` needs beside the parameters to write a checkpoint back byte for byte."""

    stored: dict[str, tuple[str, str]]  # canonical name -> stored name and dtype, if not itself and float32
    left_out: dict[str, np.ndarray]  # tensors that the encoder has no use for: pretraining heads, buffers


class LoadedModel(NamedTuple):
    config: ModelConfig
    parameters: Tree  # numpy, float32
    tokenizer_folder: Path
    origin: Origin


def load_model(model: str | os.PathLike, *, max_length: int = 0) -> LoadedModel:
    """Reads MODEL: a folder of ours, Hugging Face's or sentence-transformers', or a hub id.

    max_length replaces the model's, if it is not 0; either is cut to what the position table holds, and logged then.

    Raises ValueError for a folder that is not a model, for a file that cannot be read, and, all in one error, for
    tensors that are missing, unknown or of the wrong shape or dtype.
    """
    folder = find_model(model)
    return (_load_ours if (folder / OURS).exists() else _load_hugging_face)(folder, max_length)


def read_config_only(model: str | os.PathLike, *, max_length: int = 0) -> tuple[ModelConfig, Path]:
    """(configuration, tokenizer folder) of MODEL without its weights, to start from random ones; no pooler layer.

    max_length is that of load_model.
    """
    folder = find_model(model)
    if (folder / OURS).exists():
        return _read_ours(folder, max_length)[0], folder
    modules = _modules_of_model(folder)
    return _model_config(folder, modules, max_length), modules.transformer


def save_model(
    folder: str | os.PathLike,
    config: ModelConfig,
    parameters: Tree,
    tokenizer_folder: Path,
    origin: Origin | None = None,
) -> None:
    """Writes a new folder in our format, complete or not at all; ValueError if it exists and is not empty."""
    origin = origin or Origin({}, {})
    with new_folder(folder) as written:
        write_tensors(written / PARAMETERS, {path: np.asarray(leaf) for path, leaf in flatten(parameters).items()})
        if origin.left_out:
            write_tensors(written / LEFT_OUT, origin.left_out)
        write_json(written / OURS, {"format": 1, "model": dataclasses.asdict(config), "stored": origin.stored})
        copy_tokenizer(tokenizer_folder, written)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files as they are."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _load_ours(folder: Path, max_length: int) -> LoadedModel:
    config, stored = _read_ours(folder, max_length)
    tensors = _read_safetensors(folder / PARAMETERS)
    expected = {path: parameter.shape for path, parameter in flatten(declare(config)).items()}
    check_tensors(folder, expected, tensors)
    left_out = _read_safetensors(folder / LEFT_OUT) if (folder / LEFT_OUT).exists() else {}
    return LoadedModel(config, unflatten({path: tensors[path] for path in expected}), folder, Origin(stored, left_out))


def _read_ours(folder: Path, max_length: int) -> tuple[ModelConfig, dict[str, tuple[str, str]]]:
    path = folder / OURS
    values = read_json(path)
    try:
        fields = dict(values["model"])
        fields["encoder"] = EncoderConfig(**fields["encoder"])
        max_length = max_length or fields["max_length"]
        fields["max_length"] = capped_length(max_length, fields["encoder"], f"{path}: max_length={max_length}")
        fields["dense"] = tuple(DenseConfig(**head) for head in fields["dense"])
        fields["prompts"] = tuple(map(tuple, fields.get("prompts", ())))
        stored = {canonical: (name, dtype) for canonical, (name, dtype) in values["stored"].items()}
        return ModelConfig(**fields), stored
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a model: {error}") from error


def _load_hugging_face(folder: Path, max_length: int) -> LoadedModel:
    modules = _modules_of_model(folder)
    config = _model_config(folder, modules, max_length)
    checkpoint = _read_checkpoint(modules.transformer)
    for index, place in enumerate(modules.dense_folders):
        checkpoint |= {f"dense_{index}.{name}": tensor for name, tensor in _read_checkpoint(place).items()}
    tensors, origin = {}, Origin({}, {})
    for name, tensor in checkpoint.items():
        canonical = canonical_name(name)
        if is_beside(name) or canonical in BUFFERS:
            origin.left_out[name] = tensor
            continue
        if canonical in tensors:
            raise ValueError(f"{modules.transformer} holds {canonical} twice, with and without a prefix")
        tensors[canonical] = tensor
        if (name, tensor.dtype.name) != (canonical, "float32"):
            origin.stored[canonical] = (name, tensor.dtype.name)
    _log_left_out(folder, origin.left_out)
    has_pooler = config.encoder.family != "distilbert" and any(name.startswith("pooler.") for name in tensors)
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, pooler=has_pooler))
    check_tensors(folder, tensor_shapes(config), tensors)
    return LoadedModel(config, from_tensors(config, tensors), modules.transformer, origin)


def _log_left_out(folder: Path, names: Iterable[str]) -> None:
    buffers = [name for name in names if not is_beside(name)]
    if buffers:
        logging.debug("%s: left out, as the encoder computes them: %s", folder, ", ".join(buffers))
    heads = dict.fromkeys(re.sub(r"\..*", ".*", name) for name in names if is_beside(name))
    if heads:
        logging.info("%s: left out, as they are no part of the encoder: %s", folder, ", ".join(heads))


def _modules_of_model(folder: Path) -> Modules:
    if not (folder / "modules.json").exists() and not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} is no model: it has no {OURS} (ours), no modules.json (sentence-transformers) and no "
            "config.json (Hugging Face)"
        )
    return read_modules(folder)


def _model_config(folder: Path, modules: Modules, max_length: int) -> ModelConfig:
    """The configuration but for `pooler`, which only the weights can tell."""
    path = modules.transformer / "config.json"
    if not path.exists():
        raise ValueError(f"{modules.transformer} has no config.json")
    try:
        encoder = from_hugging_face(read_json(path))
        if max_length:
            max_length = capped_length(max_length, encoder, f"max_length={max_length}")
        else:
            max_length = read_max_length(modules.transformer, encoder)
        return ModelConfig(encoder, modules.pooling, modules.dense, modules.normalize, max_length, modules.prompts,
                           modules.default_prompt_name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def check_tensors(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]) -> None:
    """Raises one ValueError that lists every missing, unknown and wrongly shaped or typed tensor."""
    problems = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    problems += [f"unknown: {name} {found[name].shape}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        if found[name].shape != expected[name]:
            problems.append(f"wrong shape: {name} is {found[name].shape}, its config says {expected[name]}")
        if found[name].dtype.name not in _FLOATS:
            problems.append(f"wrong dtype: {name} is {found[name].dtype.name}, supported are {', '.join(_FLOATS)}")
    if problems:
        raise ValueError(f"{folder}: {len(problems)} tensors do not fit the model: " + "; ".join(sorted(problems)))


def _read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, under the names and in the dtypes that they are stored with."""
    path = next((folder / name for name in _CHECKPOINTS if (folder / name).exists()), None)
    if path is None:
        raise ValueError(f"{folder} has no weights: none of {', '.join(_CHECKPOINTS)}")
    paths = [path]
    if path.suffix == ".json":
        files = sorted(set(read_json(path)["weight_map"].values()))
        absent = [name for name in files if not (folder / name).exists()]
        if absent:
            raise ValueError(f"{path} names files that are not there: {', '.join(absent)}")
        paths = [folder / name for name in files]
    tensors = {}
    for path in paths:
        tensors |= _read_pickle(path) if path.suffix == ".bin" else _read_safetensors(path)
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file. Raises OSError that names it if that fails, for example on a full disk."""
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    set_default_permissions(path)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Tensors of an old pytorch_model.bin; only tensors are unpickled, never code."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is in PyTorch's old format, which needs the torch extra: pip install -e '.[torch]'"
        ) from error
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise ValueError(f"{path} is not a PyTorch checkpoint of tensors: {str(error).splitlines()[0]}") from error
    return {
        name: tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for name, tensor in state.items()
    }


def model_fingerprint(model: ModelConfig, parameters: Tree, tokenizer: TextTokenizer) -> str:
    """16 hexadecimal digits of a hash of all that decides an embedding: configuration, weights, tokenizer.

    Prompts and the normalisation at the end are left out: a prompt is part of the text, and cosine ignores length.
    """
    values = dataclasses.asdict(model) | {"normalize": False}
    del values["prompts"], values["default_prompt_name"]
    digest = hashlib.sha256(json.dumps([values, tokenizer.fingerprint], sort_keys=True).encode())
    for path, values in sorted(flatten(parameters).items()):
        digest.update(f"{path} {values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()[:16]
