"""Every parameter declared once: shape, dtype, logical axes, initializer. All else about parameters derives from it."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.config import EncoderConfig, ModelConfig
from sharding.shares import gather_share

Tree = dict[str, Any]  # nested dicts
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]  # (key, shape, dtype) -> values

zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


@dataclasses.dataclass(frozen=True)
class Parameter:
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # what each axis is: keys of AXES in sharding/layout.py
    initializer: Initializer
    dtype: Any = jnp.float32  # the master copy; the encoder casts to its compute dtype

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")


def declare(config: ModelConfig) -> Tree:
    """The tree of declarations: "embeddings", "layers" (leading axis: layer), "pooler" if any, "dense_0", ..."""
    encoder = config.encoder
    tree = {"embeddings": declare_embeddings(encoder), "layers": declare_layers(encoder)}
    if encoder.pooler:
        size, normal = encoder.hidden_size, jax.nn.initializers.normal(encoder.initializer_range)
        tree["pooler"] = {
            "kernel": Parameter((size, size), ("hidden", "hidden"), normal),
            "bias": Parameter((size,), ("hidden",), zeros),
        }
    for index, dense in enumerate(config.dense):
        initializer = uniform(1 / math.sqrt(dense.in_features))  # torch.nn.Linear's, as sentence-transformers has it
        head = {"kernel": Parameter((dense.in_features, dense.out_features), ("hidden", "embedding"), initializer)}
        if dense.bias:
            head["bias"] = Parameter((dense.out_features,), ("embedding",), initializer)
        tree[f"dense_{index}"] = head
    return tree


def declare_embeddings(config: EncoderConfig) -> Tree:
    """The tables of tokens, positions and types, and the norm after their sum."""
    size, scale = config.hidden_size, config.initializer_range
    normal = jax.nn.initializers.normal(scale)
    positions = config.max_positions + config.position_offset
    tree = {
        "token": Parameter(
            (config.vocab_size, size), ("vocabulary", "hidden"), _normal_with_zero_row(scale, config.pad_token_id)
        ),
        "position": Parameter(
            (positions, size),
            ("positions", "hidden"),
            _normal_with_zero_row(scale, config.pad_token_id) if config.position_offset else normal,
        ),
        "norm_scale": Parameter((size,), ("hidden",), ones),
        "norm_bias": Parameter((size,), ("hidden",), zeros),
    }
    if config.type_vocab_size:
        tree["type"] = Parameter((config.type_vocab_size, size), ("types", "hidden"), normal)
    return tree


def declare_layers(config: EncoderConfig) -> Tree:
    """All layers, stacked: the leading axis of each parameter is the layer."""
    count, size, inner = config.num_layers, config.hidden_size, config.intermediate_size
    normal = jax.nn.initializers.normal(config.initializer_range)
    shapes = {  # name -> shape of one layer, axes, initializer
        "qkv_kernel": ((size, 3, size), ("hidden", "projections", "heads"), normal),
        "qkv_bias": ((3, size), ("projections", "heads"), zeros),
        "attention_kernel": ((size, size), ("heads", "hidden"), normal),
        "attention_bias": ((size,), ("hidden",), zeros),
        "attention_norm_scale": ((size,), ("hidden",), ones),
        "attention_norm_bias": ((size,), ("hidden",), zeros),
        "up_kernel": ((size, inner), ("hidden", "intermediate"), normal),
        "up_bias": ((inner,), ("intermediate",), zeros),
        "down_kernel": ((inner, size), ("intermediate", "hidden"), normal),
        "down_bias": ((size,), ("hidden",), zeros),
        "output_norm_scale": ((size,), ("hidden",), ones),
        "output_norm_bias": ((size,), ("hidden",), zeros),
    }
    return {
        name: Parameter((count, *shape), ("layers", *axes), initializer)
        for name, (shape, axes, initializer) in shapes.items()
    }


def _normal_with_zero_row(scale: float, row: int) -> Initializer:
    """normal(scale) with the padding token's row zero, as torch.nn.Embedding(padding_idx=row) starts."""
    normal = jax.nn.initializers.normal(scale)
    return lambda key, shape, dtype: normal(key, shape, dtype).at[row].set(0)


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound): torch.nn.Linear's with 1 / sqrt(inputs)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def initialize(declarations: Tree, key: jax.Array) -> Tree:
    """Initial values. Each parameter's key comes from its name, so adding a head changes no other parameter."""

    def value(path, parameter: Parameter) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return parameter.initializer(
            jax.random.fold_in(key, zlib.crc32(name.encode())), parameter.shape, parameter.dtype
        )

    return jax.tree_util.tree_map_with_path(value, declarations)


def abstract(declarations: Tree) -> Tree:
    """Shapes and dtypes without values."""
    return jax.tree.map(lambda parameter: jax.ShapeDtypeStruct(parameter.shape, parameter.dtype), declarations)


def gather_weights(shares: Tree, declarations: Tree, dtype: jnp.dtype) -> Tree:
    """The whole weights of shares (sharding/shares.py), float32; kernels are sent in `dtype`, vectors as they are."""

    def gather(path, declared: Parameter, share: jax.Array) -> jax.Array:
        is_kernel = path[-1].key.endswith("kernel")
        return gather_share(share, declared.shape, dtype if is_kernel else share.dtype)

    return jax.tree_util.tree_map_with_path(gather, declarations, shares)


def one_layer(declarations: Tree) -> Tree:
    """Declarations of a stack of layers -> those of one of them."""
    return jax.tree.map(
        lambda stack: dataclasses.replace(stack, shape=stack.shape[1:], axes=stack.axes[1:]), declarations)
