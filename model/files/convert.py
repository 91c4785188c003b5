"""Convert a model from Hugging Face's format to ours, or back.

Both ways keep every bit: a checkpoint of float16 or bfloat16 is widened to float32 here and goes back as it was, and
tensors that an encoder has no use for (pretraining heads, buffers) are carried along.
"""

import pathlib
from dataclasses import dataclass

from absl import logging

from data.files import new_folder, write_json
from flags import REQUIRED, flag
from model.config import to_hugging_face
from model.files.folders import OURS, find_model
from model.files.modules import write_modules
from model.files.names import to_tensors
from model.files.weights import LoadedModel, copy_tokenizer, load_model, save_model, write_tensors


@dataclass(frozen=True)
class ConvertConfig:
    source: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers', or the WORKDIR of a "
                                 "training run) or a hub id")
    target: str = flag(REQUIRED, "new folder that is written: in our format if the source is in another one, else in "
                                 "Hugging Face's, with modules.json for sentence-transformers")


def convert(config: ConvertConfig) -> None:
    """Hugging Face -> ours, ours -> Hugging Face; raises ValueError if the target is not empty."""
    folder = find_model(config.source)
    model = load_model(folder)
    if (folder / OURS).exists():
        with new_folder(config.target) as written:
            copy_tokenizer(model.tokenizer_folder, written)
            write_hugging_face(written, model)
    else:
        save_model(config.target, *model)
    logging.info("converted %s to %s", folder, config.target)


def write_hugging_face(folder: pathlib.Path, model: LoadedModel) -> None:
    """Writes config.json, weights and modules beside the tokenizer, as sentence-transformers lays them out.

    Tensors have the dtypes that they were stored in.
    """
    write_json(folder / "config.json", to_hugging_face(model.config.encoder))
    dense_folders = write_modules(folder, model.config)
    encoder, heads = dict(model.origin.left_out), [{} for _ in model.config.dense]
    for canonical, tensor in to_tensors(model.config, model.parameters).items():
        name, dtype = model.origin.stored.get(canonical, (canonical, "float32"))
        group, _, rest = name.partition(".")
        tensors = encoder
        if group.startswith("dense_"):
            tensors, name = heads[int(group.removeprefix("dense_"))], rest
        tensors[name] = tensor.astype(dtype)
    if model.config.pooling == "pooler":  # written as a Dense head (see write_modules)
        pooler = model.parameters["pooler"]
        heads.insert(0, {"linear.weight": pooler["kernel"].T, "linear.bias": pooler["bias"]})
    write_tensors(folder / "model.safetensors", encoder)
    for place, tensors in zip(dense_folders, heads):
        write_tensors(place / "model.safetensors", tensors)
