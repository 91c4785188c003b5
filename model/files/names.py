"""Hugging Face's tensor names for our parameters, and either set of tensors as the other.

Ours is the tree of model.parameters.declare, flattened to paths such as "layers/qkv_kernel": one tensor for all layers,
kernels [in, out], query, key and value in one. Theirs has one tensor per layer and projection, kernels [out, in].
A Dense head's tensors are called "dense_0.linear.weight" here; sentence-transformers keeps each in a file of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from model.config import EncoderConfig, ModelConfig
from model.parameters import Tree, declare

# Our path without its last word -> their modules. {layer} stands for the number of a layer.
_BERT = {
    "embeddings/token": ("embeddings.word_embeddings",),
    "embeddings/position": ("embeddings.position_embeddings",),
    "embeddings/type": ("embeddings.token_type_embeddings",),
    "embeddings/norm": ("embeddings.LayerNorm",),
    "layers/qkv": tuple(f"encoder.layer.{{layer}}.attention.self.{part}" for part in ("query", "key", "value")),
    "layers/attention": ("encoder.layer.{layer}.attention.output.dense",),
    "layers/attention_norm": ("encoder.layer.{layer}.attention.output.LayerNorm",),
    "layers/up": ("encoder.layer.{layer}.intermediate.dense",),
    "layers/down": ("encoder.layer.{layer}.output.dense",),
    "layers/output_norm": ("encoder.layer.{layer}.output.LayerNorm",),
    "pooler": ("pooler.dense",),
}
_DISTILBERT = {
    "embeddings/token": ("embeddings.word_embeddings",),
    "embeddings/position": ("embeddings.position_embeddings",),
    "embeddings/norm": ("embeddings.LayerNorm",),
    "layers/qkv": tuple(f"transformer.layer.{{layer}}.attention.{part}_lin" for part in "qkv"),
    "layers/attention": ("transformer.layer.{layer}.attention.out_lin",),
    "layers/attention_norm": ("transformer.layer.{layer}.sa_layer_norm",),
    "layers/up": ("transformer.layer.{layer}.ffn.lin1",),
    "layers/down": ("transformer.layer.{layer}.ffn.lin2",),
    "layers/output_norm": ("transformer.layer.{layer}.output_layer_norm",),
}
_SUFFIXES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

PREFIXES = ("bert.", "roberta.", "distilbert.")  # of the encoder in a checkpoint that was saved together with a head
ENCODER = ("embeddings.", "encoder.", "transformer.", "pooler.", "dense_")  # of the encoder by itself, and our heads
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def canonical_name(name: str) -> str:
    """A stored name without its prefix, and with the LayerNorm names of today (weight, bias; once gamma, beta)."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def is_beside(name: str) -> bool:
    """Whether a stored tensor lies beside the encoder, as the heads of tasks do (classifier, cls, lm_head)."""
    return not name.startswith(PREFIXES + ENCODER)


def flatten(tree: Tree) -> dict[str, Any]:
    """{"layers": {"qkv_kernel": x}} -> {"layers/qkv_kernel": x}."""
    return {f"{group}/{name}": leaf for group, leaves in tree.items() for name, leaf in leaves.items()}


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        group, name = path.split("/")
        tree.setdefault(group, {})[name] = leaf
    return tree


def hugging_face_names(path: str, encoder: EncoderConfig) -> list[list[str]]:
    """Their names for one of our parameters: [layers or 1][query, key, value or 1]."""
    group, name = path.split("/")
    stem, _, suffix = name.rpartition("_")
    if group.startswith("dense_"):
        modules, suffix = (f"{group}.linear",), name
    else:
        table = _DISTILBERT if encoder.family == "distilbert" else _BERT
        if group == "pooler":
            modules, suffix = table["pooler"], name
        elif suffix in _SUFFIXES:
            modules = table[f"{group}/{stem}"]
        else:  # an embedding table
            modules = table[path]
    ending = _SUFFIXES.get(suffix, "weight")
    layers = range(encoder.num_layers) if group == "layers" else (0,)
    return [[f"{module.format(layer=layer)}.{ending}" for module in modules] for layer in layers]


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a Hugging Face checkpoint of this model holds."""
    shapes = {}
    for path, parameter in flatten(declare(config)).items():
        names = hugging_face_names(path, config.encoder)
        shape = parameter.shape[1:] if path.startswith("layers/") else parameter.shape
        if len(names[0]) > 1:  # query, key and value
            shape = (*shape[:-2], shape[-1])
        if path.endswith("kernel"):
            shape = shape[::-1]
        shapes |= {name: shape for parts in names for name in parts}
    return shapes


def from_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Tree:
    """Our parameters (numpy, float32) from the tensors that `tensor_shapes` names, of any floating dtype."""
    leaves = {}
    for path, parameter in flatten(declare(config)).items():
        leaf = np.empty(parameter.shape, np.float32)
        for their_name, view in _views(path, leaf, config.encoder):
            view[...] = tensors[their_name]
        leaves[path] = leaf
    return unflatten(leaves)


def to_tensors(config: ModelConfig, parameters: Tree) -> dict[str, np.ndarray]:
    """The inverse of `from_tensors`: their names -> float32 arrays."""
    return {
        name: np.ascontiguousarray(view)
        for path, leaf in flatten(parameters).items()
        for name, view in _views(path, np.asarray(leaf, np.float32), config.encoder)
    }


def _views(path: str, leaf: np.ndarray, encoder: EncoderConfig):
    """(their name, view of our array in their shape) for each of their tensors that our array holds."""
    for layer, names in enumerate(hugging_face_names(path, encoder)):
        ours = leaf[layer] if path.startswith("layers/") else leaf
        parts = np.moveaxis(ours, -2, 0) if len(names) > 1 else [ours]  # [D, 3, D] or [3, D] -> query, key, value
        for name, part in zip(names, parts):
            yield name, part.T if path.endswith("kernel") else part
