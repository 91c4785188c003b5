"""The modules of a sentence-transformers folder: which there are and where, read and written.

modules.json lists Transformer, Pooling, Dense (any number) and Normalize (or not), each with a folder of its own.
Read: what sentence-transformers 0.x to 6 write. Written: the form of 2.x to 5, which 6 reads too.
"""

from pathlib import Path
from typing import NamedTuple

from data.examples import Prompts
from data.files import read_json, write_json
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


def read_modules(folder: Path) -> Modules:
    """Raises ValueError for a module, an order or an option that our model does not have."""
    path = folder / "modules.json"
    if not path.exists():
        return Modules(folder, "mean", (), (), False, ())
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
        prompts=_read_prompts(folder),
    )


def _read_prompts(folder: Path) -> tuple[tuple[str, str], ...]:
    path = folder / "config_sentence_transformers.json"
    settings = read_json(path) if path.exists() else {}
    prompts = {name: prompt or "" for name, prompt in (settings.get("prompts") or {}).items()}
    if prompt := prompts.get(settings.get("default_prompt_name")):
        raise ValueError(f"{path} puts the prompt {prompt!r} before every text, which is not supported")
    return tuple(prompts.items())


def retrieval_prompts(config: ModelConfig) -> Prompts:
    """What sentence-transformers' encode_query and encode_document put before a text."""
    prompts = dict(config.prompts)
    document = next((name for name in ("document", "passage", "corpus") if name in prompts), "")
    return Prompts(prompts.get("query", ""), prompts.get(document, ""))


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
    """Tokens that the Transformer module reads of a text, special ones included.

    max_seq_length of sentence_*_config.json; else model_max_length of tokenizer_config.json, at most the positions.
    """
    max_length = sentence_settings(transformer).get("max_seq_length")
    if max_length is None:
        path = transformer / "tokenizer_config.json"
        max_length = (read_json(path) if path.exists() else {}).get("model_max_length", _UNSET_LENGTH)
        max_length = int(min(max_length, encoder.max_positions))
    return max_length


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
               {"prompts": dict(config.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"})
    return dense_folders
