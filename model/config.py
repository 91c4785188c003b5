"""What a sentence encoder is made of, as frozen dataclasses, and the mapping to and from Hugging Face's config.json."""

from dataclasses import dataclass
from typing import Any, Literal

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert")
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")  # sentence-transformers'
HEAD_ACTIVATIONS = ("tanh", "identity", "gelu", "relu", "sigmoid", "silu")
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "relu": "relu"}


@dataclass(frozen=True)
class EncoderConfig:
    """A BERT-like encoder. MiniLM and TinyBERT are "bert", DistilRoBERTa is "roberta": only the sizes differ."""

    family: Literal["bert", "roberta", "xlm-roberta", "distilbert"]
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int  # the most tokens of a text; RoBERTa's position table has `position_offset` rows more
    type_vocab_size: int  # 0: no type table (DistilBERT)
    activation: Literal["gelu", "gelu_new", "relu"]  # "gelu" is the exact one, "gelu_new" the tanh form
    layer_norm_epsilon: float
    hidden_dropout: float
    attention_dropout: float
    pad_token_id: int
    position_offset: int  # row of position 0 in the position table: pad_token_id + 1 for RoBERTa, else 0
    initializer_range: float
    pooler: bool  # Dense + tanh on the first token: needed for "pooler" pooling, else kept for the round trip only

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"family={self.family!r} is not one of {', '.join(FAMILIES)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not divisible by num_heads={self.num_heads}")


@dataclass(frozen=True)
class DenseConfig:
    """A head after pooling: activation(x @ kernel + bias), or that of x / |x| if normalize_input."""

    in_features: int
    out_features: int
    bias: bool
    activation: Literal["tanh", "identity", "gelu", "relu", "sigmoid", "silu"]  # "gelu" is the exact one
    normalize_input: bool = False

    def __post_init__(self):
        if self.activation not in HEAD_ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is not one of {', '.join(HEAD_ACTIVATIONS)}")


@dataclass(frozen=True)
class ModelConfig:
    """Text in, embedding out: encoder, pooling, dense heads, L2 normalisation."""

    encoder: EncoderConfig
    pooling: str  # one of POOLING_MODES, several of them joined by "+" (concatenated in this order), or "pooler"
    dense: tuple[DenseConfig, ...]
    normalize: bool
    max_length: int  # tokens per text that are read, special tokens included; longer texts are truncated
    prompts: tuple[tuple[str, str], ...] = ()  # (name, what is put before a text)
    default_prompt_name: str = ""  # of the prompt that a text gets unless another one is asked for; "": none

    def __post_init__(self):
        unknown = set(self.pooling.split("+")) - set(POOLING_MODES)
        if unknown and self.pooling != "pooler":
            raise ValueError(f"pooling={self.pooling!r} is not pooler, one of {', '.join(POOLING_MODES)}, or some of "
                             "these joined by +")
        if self.pooling == "pooler" and not self.encoder.pooler:
            raise ValueError("pooling='pooler' needs an encoder with a pooler layer, but encoder.pooler is False")
        if self.default_prompt_name and self.default_prompt_name not in dict(self.prompts):
            raise ValueError(f"default_prompt_name={self.default_prompt_name!r} is not one of the prompts "
                             f"{', '.join(dict(self.prompts))}")
        if self.max_length < 3:
            raise ValueError(f"max_length={self.max_length} leaves no room for a token between the two special ones: "
                             "at least 3 are needed")
        if self.max_length > self.encoder.max_positions:
            raise ValueError(
                f"max_length={self.max_length} is above the position table's {self.encoder.max_positions}: lower it"
            )
        width = self.pooled_size
        for index, dense in enumerate(self.dense):
            if dense.in_features != width:
                raise ValueError(f"dense_{index} takes {dense.in_features} features, but is given {width}")
            width = dense.out_features

    @property
    def pooled_size(self) -> int:
        return self.encoder.hidden_size * len(self.pooling.split("+"))

    @property
    def embedding_size(self) -> int:
        return self.dense[-1].out_features if self.dense else self.pooled_size


# Our field -> the key in config.json, for BERT and RoBERTa, and for DistilBERT, which has its own names.
BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pad_token_id": "pad_token_id",
    "initializer_range": "initializer_range",
}
DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "pad_token_id": "pad_token_id",
    "initializer_range": "initializer_range",
}
# What transformers assumes for a key that config.json leaves out; the sizes have no default here.
DEFAULTS = {
    "type_vocab_size": 2,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-12,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
}


def from_hugging_face(values: dict[str, Any], *, pooler: bool = False) -> EncoderConfig:
    """The encoder that a config.json describes; whether it has a pooler, only the weights can tell.

    Raises ValueError for a model_type, an activation or an option that the encoder does not have, and for missing keys.
    """
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"config.json: model_type={family!r} is not one of {', '.join(FAMILIES)}")
    keys = DISTILBERT_KEYS if family == "distilbert" else BERT_KEYS
    is_roberta = family in ("roberta", "xlm-roberta")
    defaults = DEFAULTS | {"pad_token_id": 1 if is_roberta else 0}
    missing = [key for field, key in keys.items() if key not in values and field not in defaults]
    if missing:
        raise ValueError(f"config.json: missing {', '.join(missing)}")
    fields = {field: values.get(key, defaults.get(field)) for field, key in keys.items()}
    if family == "distilbert":
        fields |= {"type_vocab_size": 0, "layer_norm_epsilon": 1e-12}
    if fields["activation"] not in ACTIVATIONS:
        raise ValueError(f"config.json: activation {fields['activation']!r} is not one of {', '.join(ACTIVATIONS)}")
    if values.get("is_decoder", False):
        raise ValueError("config.json: is_decoder is true; only encoders are read")
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"config.json: position_embedding_type={values['position_embedding_type']!r}, not 'absolute'")
    offset = fields["pad_token_id"] + 1 if is_roberta else 0
    fields |= {
        "activation": ACTIVATIONS[fields["activation"]],
        "max_positions": fields["max_positions"] - offset,
        "position_offset": offset,
    }
    return EncoderConfig(family=family, pooler=pooler, **fields)


def to_hugging_face(config: EncoderConfig) -> dict[str, Any]:
    """The config.json that makes transformers build this encoder."""
    keys = DISTILBERT_KEYS if config.family == "distilbert" else BERT_KEYS
    architecture = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel",
                    "distilbert": "DistilBertModel"}[config.family]
    values = {key: getattr(config, field) for field, key in keys.items()}
    values["max_position_embeddings"] += config.position_offset
    return {"architectures": [architecture], "model_type": config.family, **values}
