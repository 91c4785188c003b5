"""The modules of a sentence-transformers folder: which there are and where, read and written.

modules.json lists Transformer and Pooling, then any number of Dense, Normalize and Dropout in any order, each with a
folder of its own. What sentence-transformers 0.x to 6 write is read. The form of 2.x to 5 is written, which 6 reads
too. Only 6 reads several pooling modes in an order of their own.
"""

from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from data.examples import Prompts
from data.files import read_json, write_json
from data.tokenizer import sentence_settings
from model.config import POOLING_MODES, DenseConfig, EncoderConfig, ModelConfig

# Key of 1_Pooling/config.json before sentence-transformers 6 -> pooling_mode of 6, in the order of concatenation.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {  # ours -> the class
    "tanh": "torch.nn.modules.activation.Tanh",
    "identity": "torch.nn.modules.linear.Identity",
    "gelu": "torch.nn.modules.activation.GELU",
    "relu": "torch.nn.modules.activation.ReLU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "silu": "torch.nn.modules.activation.SiLU",
}
_UNSET_LENGTH = 1_000_000  # tokenizer_config.json has 1e30 if nobody set a length


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
    try:
        listed = [(module["type"].rsplit(".")[-1], folder / module["path"]) for module in read_json(path)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of modules, each with type and path: {error!r}") from error
    kinds = [kind for kind, _ in listed]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize", "Dropout"}:
        raise ValueError(f"{path} lists the modules {' '.join(kinds)}; supported are Transformer and Pooling, then "
                         "Dense, Normalize and Dropout in any order")
    dense, normalize = [], False
    for kind, place in listed[2:]:
        if kind == "Dense":
            dense.append(_read_dense(place / "config.json", normalize_input=normalize))
            normalize = False
        elif kind == "Normalize":
            _check_normalize(place / "config.json")
            normalize = True
    if "Dropout" in kinds:
        logging.info("%s: the Dropout after pooling is left out, as it changes no embedding", path)
    return Modules(
        transformer=listed[0][1],
        pooling=_read_pooling(listed[1][1] / "config.json"),
        dense=tuple(dense),
        dense_folders=tuple(place for kind, place in listed if kind == "Dense"),
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
    if not modes or set(modes) - set(POOLING_MODES):
        raise ValueError(f"{path} asks for pooling {' + '.join(modes) or 'without a mode'}; the modes are "
                         f"{', '.join(POOLING_MODES)}")
    if not config.get("include_prompt", True):
        raise ValueError(f"{path}: include_prompt is false: a prompt is pooled with its text here")
    return "+".join(modes)


def _read_dense(path: Path, *, normalize_input: bool) -> DenseConfig:
    config = read_json(path)
    _check_names(path, config)
    if config.get("use_residual"):
        raise ValueError(f"{path}: a Dense with use_residual is not supported")
    activation = config.get("activation_function", _ACTIVATIONS["tanh"])
    known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    known |= {f"torch.nn.{theirs.rpartition('.')[2]}": ours for theirs, ours in known.items()}
    if activation not in known:
        raise ValueError(f"{path}: activation_function {activation!r} is not one of {', '.join(_ACTIVATIONS.values())}")
    bias = bool(config.get("bias", True))
    if not all(isinstance(config.get(key), int) for key in ("in_features", "out_features")):
        raise ValueError(f"{path}: in_features and out_features must both be given, as numbers")
    return DenseConfig(config["in_features"], config["out_features"], bias, known[activation], normalize_input)


def _check_normalize(path: Path) -> None:
    if path.exists():  # before sentence-transformers 6 there was none
        _check_names(path, read_json(path))


def _check_names(path: Path, config: dict[str, Any]) -> None:
    names = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if names != {"sentence_embedding"}:
        raise ValueError(f"{path}: a module on other than sentence_embedding is not supported")


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

    name says in messages what asked for this length, with its value. Raises ValueError if it is not a number.
    """
    if not isinstance(max_length, int | float):
        raise ValueError(f"{name} is not a number")
    if max_length > encoder.max_positions:
        logging.warning("%s is above the position table: texts are cut at its %d tokens", name, encoder.max_positions)
    return int(min(max_length, encoder.max_positions))


def write_modules(folder: Path, config: ModelConfig) -> list[Path]:
    """Writes modules.json and the modules' own settings; returns the folders of the Dense heads, for their weights.

    The tokenizer's files are there already: do_lower_case stays as they have it. "pooler" pooling becomes what it is:
    the first token, then a Dense with tanh, the first of the heads.
    """
    lower_case = bool(sentence_settings(folder).get("do_lower_case", False))
    dense, size = config.dense, config.encoder.hidden_size
    if config.pooling == "pooler":
        dense = (DenseConfig(size, size, True, "tanh"), *dense)
    modules: list[tuple[str, dict[str, Any]]] = [("Transformer", {}), ("Pooling", _pooling_settings(config))]
    for head in dense:
        modules += [("Normalize", {})] * head.normalize_input
        modules.append(("Dense", {
            "in_features": head.in_features, "out_features": head.out_features, "bias": head.bias,
            "activation_function": _ACTIVATIONS[head.activation],
        }))
    modules += [("Normalize", {})] * config.normalize
    places = ["", *(f"{index}_{kind}" for index, (kind, _) in enumerate(modules[1:], start=1))]
    write_json(folder / "modules.json", [
        {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for index, (place, (kind, _)) in enumerate(zip(places, modules))
    ])
    for place, (_, settings) in zip(places[1:], modules[1:]):
        (folder / place).mkdir()
        write_json(folder / place / "config.json", settings)
    write_json(folder / "sentence_bert_config.json",
               {"max_seq_length": config.max_length, "do_lower_case": lower_case})
    write_json(folder / "config_sentence_transformers.json",
               {"prompts": dict(config.prompts), "default_prompt_name": config.default_prompt_name or None,
                "similarity_fn_name": "cosine"})
    return [folder / place for place, (kind, _) in zip(places, modules) if kind == "Dense"]


def _pooling_settings(config: ModelConfig) -> dict[str, Any]:
    """1_Pooling/config.json. Flags have one order; modes in another one need the list of sentence-transformers 6."""
    modes = ["cls"] if config.pooling == "pooler" else config.pooling.split("+")
    width = {"word_embedding_dimension": config.encoder.hidden_size}
    if modes != [mode for mode in _POOLING_FLAGS.values() if mode in modes]:
        return width | {"pooling_mode": modes}
    return width | {key: mode in modes for key, mode in _POOLING_FLAGS.items()}
