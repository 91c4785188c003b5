"""The encoder: BERT, MiniLM, TinyBERT, RoBERTa, DistilRoBERTa, XLM-RoBERTa and DistilBERT over packed rows of texts.

A row holds several texts, told apart by segment ids. Positions restart in each text and attention never leaves one.
Layers are post-norm (Devlin et al. 2019).

Legend: r rows, L tokens per row, D hidden size, h heads, d = D / h, F width of the feed-forward layer.
"""

import functools
import math

import jax
import jax.numpy as jnp

from kernels.attention.api import Implementation, attend
from kernels.implementation import device_kind
from model.config import EncoderConfig
from model.dropout import (
    ATTENTION_OUTPUT,
    ATTENTION_PROBABILITIES,
    EMBEDDINGS,
    FEED_FORWARD_OUTPUT,
    DropoutKeys,
    dropout,
    site_keys,
)
from model.parameters import Tree, declare_embeddings, declare_layers, gather_weights, one_layer
from sharding.shares import look_up


def encode(
    parameters: Tree,
    config: EncoderConfig,
    tokens: jax.Array,  # [r, L] int32
    segments: jax.Array,  # [r, L] int32, 0 = unused
    positions: jax.Array,  # [r, L] int32
    *,
    dtype: jnp.dtype = jnp.float32,
    dropout: DropoutKeys | None = None,
    remat: bool = False,
    attention_implementation: Implementation = "auto",
) -> jax.Array:
    """Hidden states [r, L, D] in `dtype`; those of unused tokens mean nothing, but are finite.

    The parameters may be shares of a layout (sharding/layout.py): each layer's are gathered when it is its turn.
    remat keeps only each layer's input for the backward pass, and computes or gathers the rest again.
    """
    hidden = embed_tokens(parameters["embeddings"], config, tokens, positions, dropout, dtype).astype(dtype)
    declared = one_layer(declare_layers(config))

    def layer(hidden, inputs):
        index, shares = inputs
        weights = gather_weights(shares, declared, dtype)
        return transformer_layer(
            weights, config, hidden, segments, index, dropout, attention_implementation), None

    if remat:
        layer = jax.checkpoint(layer)
    indices = jnp.arange(config.num_layers, dtype=jnp.uint32)
    # On the CPU a loop spends a quarter of its time on copies of what it keeps of each layer; elsewhere compiling all
    # layers one by one would take minutes.
    unroll = config.num_layers if device_kind() == "cpu" else 1
    hidden, _ = jax.lax.scan(layer, hidden, (indices, parameters["layers"]), unroll=unroll)
    return hidden


def embed_tokens(
    shares: Tree,
    config: EncoderConfig,
    tokens: jax.Array,  # [r, L] int32
    positions: jax.Array,  # [r, L] int32
    keys: DropoutKeys | None,
    dtype: jnp.dtype,
) -> jax.Array:
    """LayerNorm(token + position + type 0) with dropout, [r, L, D] float32. A split token table is sent in `dtype`."""
    declared = declare_embeddings(config)
    table = declared.pop("token")
    with jax.named_scope("embeddings"):
        hidden = look_up(shares["token"], tokens, table.shape, dtype)
        weights = gather_weights({name: shares[name] for name in declared}, declared, dtype)
        # The padding token's row is never trained (torch.nn.Embedding's padding_idx).
        hidden = jnp.where((tokens == config.pad_token_id)[..., None], jax.lax.stop_gradient(hidden), hidden)
        hidden += weights["position"][positions + config.position_offset]
        if config.type_vocab_size:
            hidden += weights["type"][:1][None]  # [1, 1, D]
        hidden = layer_norm(hidden, weights["norm_scale"], weights["norm_bias"], config.layer_norm_epsilon)
        return dropout(hidden, keys, 0, EMBEDDINGS, config.hidden_dropout)


def transformer_layer(
    weights: Tree,
    config: EncoderConfig,
    hidden: jax.Array,  # [r, L, D]
    segments: jax.Array,  # [r, L] int32
    index: jax.Array,  # [] uint32, number of the layer
    keys: DropoutKeys | None,
    attention_implementation: Implementation,
) -> jax.Array:
    """One post-norm layer: x = norm(x + attention(x)); norm(x + feed_forward(x))."""
    epsilon = config.layer_norm_epsilon
    with jax.named_scope("attention"):
        attended = attention(weights, config, hidden, segments, index, keys, attention_implementation)
        attended = dense(attended, weights["attention_kernel"], weights["attention_bias"])
        if config.family != "distilbert":  # DistilBERT has no dropout here
            attended = dropout(attended, keys, index, ATTENTION_OUTPUT, config.hidden_dropout)
        hidden = layer_norm(
            hidden + attended, weights["attention_norm_scale"], weights["attention_norm_bias"], epsilon
        )
    with jax.named_scope("feed_forward"):
        inner = activate(dense(hidden, weights["up_kernel"], weights["up_bias"]), config.activation)
        inner = dense(inner, weights["down_kernel"], weights["down_bias"])
        inner = dropout(inner, keys, index, FEED_FORWARD_OUTPUT, config.hidden_dropout)
        return layer_norm(hidden + inner, weights["output_norm_scale"], weights["output_norm_bias"], epsilon)


def attention(
    weights: Tree,
    config: EncoderConfig,
    hidden: jax.Array,  # [r, L, D]
    segments: jax.Array,  # [r, L] int32
    index: jax.Array,
    keys: DropoutKeys | None,
    implementation: Implementation,
) -> jax.Array:
    """Projections to queries, keys and values, and attention; [r, L, D]."""
    size = config.hidden_size
    # A bias of the keys adds the same to all scores of a query, so softmax ignores it. Left out, its gradient is zero
    # instead of rounding noise, which AdamW would blow up to steps of full size.
    bias = weights["qkv_bias"].at[1].set(0.0)
    qkv = dense(hidden, weights["qkv_kernel"].reshape(size, 3 * size), bias.reshape(3 * size))
    if config.attention_dropout == 0:
        keys = None
    if keys is not None:
        keys = site_keys(keys, index, ATTENTION_PROBABILITIES)
    return attend(qkv, segments, keys, num_heads=config.num_heads, rate=config.attention_dropout,
                  implementation=implementation)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias in x's dtype, accumulated in float32; x [..., in], kernel [in, out]."""
    return (product(x, kernel) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)).astype(x.dtype)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, float32, from operands of x's dtype; so are those of both products of the backward pass.

    Left to AD, a bfloat16 product with a float32 result has a float32 gradient, which makes the backward products
    float32 ones: half the speed or less, on CPUs as on matrix units.
    """
    return _product(x, kernel)[0]


def _contract(left: jax.Array, right: jax.Array, over: tuple) -> jax.Array:
    return jax.lax.dot_general(left, right, (over, ((), ())), preferred_element_type=jnp.float32)


def _product(x, kernel):
    kernel = kernel.astype(x.dtype)
    return _contract(x, kernel, ((x.ndim - 1,), (0,))), (x, kernel)


def _product_backward(residuals, gradient):
    x, kernel = residuals
    gradient, leading = gradient.astype(x.dtype), tuple(range(x.ndim - 1))
    d_x = _contract(gradient, kernel, ((x.ndim - 1,), (1,)))
    if x.shape[-1] <= gradient.shape[-1] or x.dtype != jnp.float32:
        d_kernel = _contract(x, gradient, (leading, leading))
    else:  # XLA's CPU back end copies the left operand of such a product transposed: let it be the narrower one
        d_kernel = _contract(gradient, x, (leading, leading)).T
    return d_x.astype(x.dtype), d_kernel


product.defvjp(_product, _product_backward)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32, returned in x's dtype."""
    vector = (1,) * (x.ndim - 1) + scale.shape
    return (standardize(x.astype(jnp.float32), epsilon) * scale.reshape(vector) + bias.reshape(vector)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardize(x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) over the last axis; keeps only the result and the root for the backward."""
    return _standardize_forward(x, epsilon)[0]


def _standardize_forward(x, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)
    unit = centred * inverse
    return unit, (unit, inverse)


def _standardize_backward(epsilon, residuals, gradient):
    unit, inverse = residuals
    along = (gradient * unit).mean(axis=-1, keepdims=True)
    return ((gradient - gradient.mean(axis=-1, keepdims=True) - unit * along) * inverse,)


standardize.defvjp(_standardize_forward, _standardize_backward)


def activate(x: jax.Array, activation: str) -> jax.Array:
    """The activation that the configuration names, computed in float32."""
    if activation == "relu":
        return jax.nn.relu(x)
    if activation == "gelu_new":
        return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)
    return gelu(x)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) with Phi the normal distribution function; keeps only x for the backward pass."""
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _gelu_backward(x, gradient):
    wide = x.astype(jnp.float32)
    distribution = 0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5))
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return ((distribution + wide * density) * gradient.astype(jnp.float32)).astype(x.dtype)


gelu.defvjp(lambda x: (gelu(x), x), lambda x, gradient: (_gelu_backward(x, gradient),))
