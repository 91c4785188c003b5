"""The modules of a sentence-transformers folder: which there are and where, read and written.

modules.json lists Transformer, Pooling, Dense (any number) and Normalize (or not), each with a folder of its own.
Read: what sentence-transformers 0.x to 6 write. Written: the form of 2.x to 5, which 6 reads too.
"""

from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from data.files import read_json, write_json
from data.formats import Prompts
from data.tokenizer import sentence_settings
from model.config import DenseConfig, EncoderConfig, ModelConfig

_POOLING_FLAGS = {  # key of 1_Pooling/config.json before sentence-transformers 6 -> pooling_mode of 6
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
}
_UNSET_LENGTH = 1_000_000  # tokenizer_config.json has 1e30 where nobody set a length


class Modules(NamedTuple):
    """What a folder's modules say; a plain Hugging Face folder is read as Transformer and mean pooling."""

    transformer: Path
    pooling: str
    dense: tuple[DenseConfig, ...]
    dense_folders: tuple[Path, ...]
    normalize: bool
    prompts: tuple[tuple[str, str], ...]
    default_prompt_name: str


def read_modules(folder: Path) -> Modules:
    """Raises ValueError for a module, an order or an option that our model does not have."""
    path = folder / "modules.json"
    if not path.exists():
        return Modules(folder, "mean", (), (), False, (), "")
    listed = [(module["type"].rsplit(".")[-1], folder / module["path"]) for module in read_json(path)]
    kinds = " ".join(kind for kind, _ in listed)
    dense_folders = tuple(place for kind, place in listed if kind == "Dense")
    normalize = kinds.endswith(" Normalize")
    if kinds != "Transformer Pooling" + " Dense" * len(dense_folders) + " Normalize" * normalize:
        raise ValueError(
            f"{path} lists the modules {kinds}: read are Transformer, Pooling, any number of Dense, and Normalize or "
            "none, in this order"
        )
    return Modules(
        transformer=listed[0][1],
        pooling=_read_pooling(listed[1][1] / "config.json"),
        dense=tuple(_read_dense(place / "config.json") for place in dense_folders),
        dense_folders=dense_folders,
        normalize=normalize,
        **_read_prompts(folder),
    )


def _read_prompts(folder: Path) -> dict[str, Any]:
    """prompts and default_prompt_name, as fields of Modules."""
    path = folder / "config_sentence_transformers.json"
    settings = read_json(path) if path.exists() else {}
    prompts = {name: prompt or "" for name, prompt in (settings.get("prompts") or {}).items()}
    default = settings.get("default_prompt_name") or ""
    if default in ("query", "document"):  # sentence-transformers takes these as empty if they are not given
        prompts.setdefault(default, "")
    if default and default not in prompts:
        raise ValueError(f"{path}: default_prompt_name={default!r} is not one of its prompts: {', '.join(prompts)}")
    return {"prompts": tuple(prompts.items()), "default_prompt_name": default}


def retrieval_prompts(config: ModelConfig) -> Prompts:
    """What sentence-transformers' encode_query and encode_document put before a text."""
    prompts = dict(config.prompts)
    document = next((name for name in ("document", "passage", "corpus") if name in prompts), "")
    return Prompts(prompts.get("query", ""), prompts.get(document, ""))


def default_prompt(config: ModelConfig) -> str:
    """What sentence-transformers' encode puts before a text if no prompt is named."""
    return dict(config.prompts).get(config.default_prompt_name, "")


def _read_pooling(path: Path) -> str:
    config = read_json(path)
    modes = config.get("pooling_mode", [mode for key, mode in _POOLING_FLAGS.items() if config.get(key)] or "mean")
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) > 1 or modes[0] not in ("mean", "cls", "max"):
        raise ValueError(f"{path} asks for pooling {' + '.join(modes)}: one of mean, cls, max is supported")
    if not config.get("include_prompt", True):
        raise ValueError(f"{path}: include_prompt is false: a prompt is pooled with its text here")
    return modes[0]


def _read_dense(path: Path) -> DenseConfig:
    config = read_json(path)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{path}: activation_function {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    between = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if config.get("use_residual") or between != {"sentence_embedding"}:
        raise ValueError(f"{path}: a Dense with use_residual or on other than sentence_embedding is not supported")
    return DenseConfig(
        config["in_features"], config["out_features"], bool(config.get("bias", True)), _ACTIVATIONS[activation]
    )


def read_max_length(transformer: Path, encoder: EncoderConfig) -> int:
    """Tokens that the Transformer module reads of a text, special ones included; at most the position table's.

    max_seq_length of sentence_*_config.json; else model_max_length of tokenizer_config.json.
    """
    max_length = sentence_settings(transformer).get("max_seq_length")
    if max_length is not None:
        return capped_length(max_length, encoder, f"{transformer}: max_seq_length={max_length}")
    path = transformer / "tokenizer_config.json"
    max_length = (read_json(path) if path.exists() else {}).get("model_max_length") or _UNSET_LENGTH
    return int(min(max_length, encoder.max_positions))


def capped_length(max_length: float, encoder: EncoderConfig, name: str) -> int:
    """max_length, or the size of the position table if that is less, which is logged.

    name says in messages what asked for this length, with its value. Raises ValueError if it is no number.
    """
    if not isinstance(max_length, int | float):
        raise ValueError(f"{name} is not a number")
    if max_length > encoder.max_positions:
        logging.warning("%s is above the position table: texts are cut at its %d tokens", name, encoder.max_positions)
    return int(min(max_length, encoder.max_positions))


def write_modules(folder: Path, config: ModelConfig) -> list[Path]:
    """Writes modules.json and the modules' own settings; returns the folders of the Dense heads, for their weights.

    The tokenizer's files are there already: lower-casing before the tokenizer is kept as they have it.

    "pooler" pooling becomes what it is: the first token, then a Dense with tanh (the first of the heads).
    """
    lower_case = bool(sentence_settings(folder).get("do_lower_case", False))
    dense = config.dense
    if config.pooling == "pooler":
        size = config.encoder.hidden_size
        dense = (DenseConfig(size, size, True, "tanh"), *dense)
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * config.normalize]
    listed = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "",
         "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", listed)
    for module in listed[1:]:
        (folder / module["path"]).mkdir()
    pooling = "cls" if config.pooling == "pooler" else config.pooling
    flags = {key: mode == pooling for key, mode in _POOLING_FLAGS.items()}
    size = config.encoder.hidden_size
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": size, **flags})
    dense_folders = [folder / module["path"] for module in listed if str(module["path"]).endswith("_Dense")]
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    for place, head in zip(dense_folders, dense):
        write_json(place / "config.json", {
            "in_features": head.in_features, "out_features": head.out_features, "bias": head.bias,
            "activation_function": names[head.activation],
        })
    if config.normalize:
        write_json(folder / listed[-1]["path"] / "config.json", {})
    write_json(folder / "sentence_bert_config.json",
               {"max_seq_length": config.max_length, "do_lower_case": lower_case})
    write_json(folder / "config_sentence_transformers.json",
               {"prompts": dict(config.prompts), "default_prompt_name": config.default_prompt_name or None,
                "similarity_fn_name": "cosine"})
    return dense_folders
