"""Hidden states and embeddings against transformers and sentence-transformers; gradients; isolation; dtypes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from data.packing import PackedTexts
from model.config import ModelConfig, from_hugging_face, to_hugging_face
from model.dropout import DropoutSeed, row_keys
from model.encoder import encode
from model.files.names import from_tensors
from model.parameters import declare, initialize
from model.pooling import embed
from tests.texts import pack_texts

# The real architectures at sizes that run in no time; TinyBERT has heads of odd width, MiniLM many small heads.
BERT = {"vocab_size": 500, "num_hidden_layers": 3, "max_position_embeddings": 64, "initializer_range": 0.2,
        "model_type": "bert", "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
ROBERTA = BERT | {"model_type": "roberta", "max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
                  "pad_token_id": 1}
FAMILIES = {
    "bert": BERT,
    "tinybert": BERT | {"hidden_size": 52, "intermediate_size": 75, "hidden_act": "relu"},
    "minilm": BERT | {"num_attention_heads": 12, "intermediate_size": 192, "hidden_act": "gelu_new"},
    "roberta": ROBERTA,
    "distilroberta": ROBERTA | {"num_hidden_layers": 2},
    "xlm-roberta": ROBERTA | {"model_type": "xlm-roberta"},
    "distilbert": {"model_type": "distilbert", "dim": 48, "n_heads": 4, "n_layers": 3, "hidden_dim": 96,
                   "vocab_size": 500, "max_position_embeddings": 64, "initializer_range": 0.2},
    # Published sizes: BERT-Tiny and TinyBERT with four layers.
    "bert-tiny-2x128": BERT | {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512,
                               "num_hidden_layers": 2, "initializer_range": 0.05},
    "tinybert-4x312": BERT | {"hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200,
                              "num_hidden_layers": 4, "initializer_range": 0.05},
}

TRANSFORMERS = """
import os
import numpy, torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel
torch.manual_seed(7)
for family, values in arguments['families'].items():
    values = dict(values)
    model = AutoModel.from_config(AutoConfig.for_model(values.pop('model_type'), **values)).eval()
    for name, parameter in model.named_parameters():  # biases and norms start at 0 and 1, where mistakes do not show
        if parameter.ndim == 1:
            scale = 'LayerNorm.weight' in name or 'layer_norm.weight' in name
            torch.nn.init.normal_(parameter, 1.0 if scale else 0.0, 0.2)
    with torch.no_grad():
        hidden = [model(input_ids=torch.tensor([text])).last_hidden_state[0].numpy() for text in arguments['texts']]
    numpy.save(family + '.npy', numpy.concatenate(hidden))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, family + '.safetensors')
result = os.getcwd()
"""


def random_texts(seed: int, count: int = 14, longest: int = 40) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(5, 500, size).astype(np.int32) for size in generator.integers(3, longest, count)]


def small_model(pooling: str = "mean", **changes) -> tuple[ModelConfig, dict]:
    """A small random BERT with dropout, and its parameters."""
    encoder = from_hugging_face(BERT, pooler=True)
    config = ModelConfig(dataclasses.replace(encoder, **changes), pooling, (), True, 64)
    return config, initialize(declare(config), jax.random.key(3))


def hidden_of_texts(hidden: jax.Array, packed: PackedTexts) -> np.ndarray:
    """The hidden states of all texts' tokens in text order, [tokens, D]."""
    hidden, segments = np.asarray(hidden), packed.segments[0]
    places = zip(packed.text_rows[0], packed.text_segments[0], strict=True)
    return np.concatenate([hidden[row][segments[row] == segment] for row, segment in places])


def run_encoder(parameters, encoder, packed, **options) -> jax.Array:
    arrays = packed.tokens[0], packed.segments[0], packed.positions[0]
    return jax.jit(lambda p: encode(p, encoder, *arrays, **options))(parameters)


@pytest.fixture(scope="module")
def transformers_folder(peer) -> str:
    """Weights and hidden states of a random model of each family, from one process of transformers."""
    return peer(TRANSFORMERS, families=FAMILIES, texts=[text.tolist() for text in random_texts(1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_transformers(transformers_folder, family):
    values, texts = FAMILIES[family], random_texts(1)
    expected = np.load(f"{transformers_folder}/{family}.npy")
    tensors = load_file(f"{transformers_folder}/{family}.safetensors")
    encoder = from_hugging_face(values, pooler="pooler.dense.weight" in tensors)
    assert from_hugging_face(to_hugging_face(encoder), pooler=encoder.pooler) == encoder
    parameters = from_tensors(ModelConfig(encoder, "mean", (), True, 64), tensors)

    packed = pack_texts(texts, None, 64, encoder.pad_token_id)
    assert packed.segments.max() > 1
    hidden = run_encoder(parameters, encoder, packed)
    assert np.abs(hidden_of_texts(hidden, packed) - expected).max() < 1e-5
    # Unpacked: one text a row.
    start = 0
    for text in texts[:3]:
        alone = pack_texts([text], None, 64, encoder.pad_token_id)
        hidden = run_encoder(parameters, encoder, alone)[0, : len(text)]
        assert np.abs(np.asarray(hidden) - expected[start : start + len(text)]).max() < 1e-5
        start += len(text)


def test_embeddings_of_the_real_minilm_equal_sentence_transformers(peer, minilm):
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply, " * 9, "a"]
    expected = peer(
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(arguments['folder'], device='cpu')\n"
        "ids = [model.tokenizer(text)['input_ids'] for text in arguments['texts']]\n"
        "result = [ids, model.encode(arguments['texts']).tolist()]",
        folder=str(minilm), texts=texts,
    )
    tokens, expected = [np.array(ids, np.int32) for ids in expected[0]], np.array(expected[1])
    encoder = from_hugging_face(json.loads((minilm / "config.json").read_text()), pooler=True)
    config = ModelConfig(encoder, "mean", (), True, 256)
    parameters = from_tensors(config, load_file(minilm / "model.safetensors"))
    packed = pack_texts(tokens, None, 128, encoder.pad_token_id)
    found = jax.jit(functools.partial(embed, config=config))(parameters, packed=packed)
    assert np.abs(np.asarray(found[0]) - expected).max() < 1e-5


def test_a_text_has_no_gradient_with_respect_to_another():
    config, parameters = small_model()
    packed = pack_texts(random_texts(2), None, 64, 0)
    rows = packed.tokens[0]
    table = parameters["embeddings"]["token"]
    # One row of the table for each token of the block, so that a gradient names the place it came from.
    places = np.arange(rows.size, dtype=np.int32).reshape(rows.shape) + 1
    parameters["embeddings"]["token"] = jnp.concatenate([table[:1], table[rows.reshape(-1)]])
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, vocab_size=1 + rows.size))
    packed = packed._replace(tokens=places[None])

    def one(table, index):
        tree = parameters | {"embeddings": parameters["embeddings"] | {"token": table}}
        return (embed(tree, config, packed)[0, index] * jnp.arange(1.0, 49.0)).sum()

    gradient = jax.jit(jax.grad(one))
    for index in range(0, 14, 3):
        row, segment = packed.text_rows[0, index], packed.text_segments[0, index]
        found = np.asarray(gradient(parameters["embeddings"]["token"], index))[1:].reshape(*rows.shape, -1)
        own = np.zeros(rows.shape, bool)
        own[row] = packed.segments[0, row] == segment
        assert (np.abs(found[own]).max(axis=-1) > 0).all()
        assert (found[~own] == 0).all()


@pytest.mark.parametrize("name", ["gelu", "layer_norm"])
def test_hand_written_gradients(name):
    from model.encoder import gelu, layer_norm

    generator = np.random.default_rng(5)
    x, y, scale, bias = (generator.standard_normal(shape).astype(np.float32) * 2
                         for shape in ((7, 24), (7, 24), (24,), (24,)))
    if name == "gelu":
        found = jax.vjp(gelu, x)
        expected = jax.vjp(functools.partial(jax.nn.gelu, approximate=False), x)
    else:
        def formula(x, scale, bias):
            unit = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
            return unit * scale[None] + bias[None]
        found = jax.vjp(lambda *a: layer_norm(*a, 1e-5), x, scale, bias)
        expected = jax.vjp(formula, x, scale, bias)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    for one, other in zip(found[1](y), expected[1](y), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_gradient_of_the_model_is_its_slope():
    """Finite differences in a random direction, with dropout: the masks of forward and backward must agree."""
    config, parameters = small_model(activation="gelu")
    packed = pack_texts(random_texts(6), None, 64, 0)
    weights = np.random.default_rng(6).standard_normal((1, 14, 48)).astype(np.float32)

    @jax.jit
    def loss(parameters):
        return (embed(parameters, config, packed, dropout=DropoutSeed(1, 2)) * weights).sum()

    value, gradient = jax.value_and_grad(loss)(parameters)
    assert abs(value - (embed(parameters, config, packed) * weights).sum()) > 1e-2  # dropout does something
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    step = 2e-3 / norm
    above = loss(jax.tree.map(lambda p, g: p + step * g, parameters, gradient))
    below = loss(jax.tree.map(lambda p, g: p - step * g, parameters, gradient))
    np.testing.assert_allclose((above - below) / (2 * step), norm**2, rtol=1e-2)


def test_rematerialisation_changes_nothing():
    config, parameters = small_model()
    packed = pack_texts(random_texts(7), None, 64, 0)

    def gradient(remat):
        return jax.jit(jax.grad(
            lambda p: (embed(p, config, packed, dropout=DropoutSeed(1, 2), remat=remat) ** 3).sum()
        ))(parameters)

    for one, other in zip(jax.tree.leaves(gradient(False)), jax.tree.leaves(gradient(True)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_attention_kernel_gives_the_same_embeddings_and_gradient():
    """With the same dropout as in the plain form."""
    config, parameters = small_model(hidden_size=128, num_heads=4, intermediate_size=128, num_layers=2)
    packed = pack_texts(random_texts(11), None, 128, 0)
    weights = np.random.default_rng(11).standard_normal((1, 14, 128)).astype(np.float32)

    def value_and_gradient(implementation):
        def value(parameters):
            found = embed(parameters, config, packed, dropout=DropoutSeed(1, 2),
                          attention_implementation=implementation)
            return (found * weights).sum(), found
        return jax.jit(jax.value_and_grad(value, has_aux=True))(parameters)

    plain, kernel = value_and_gradient("xla"), value_and_gradient("tpu_interpret")
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_bfloat16_is_close():
    config, parameters = small_model()
    packed = pack_texts(random_texts(8), None, 64, 0)
    full = np.asarray(embed(parameters, config, packed))
    half = jax.jit(lambda p: embed(p, config, packed, dtype=jnp.bfloat16))(parameters)
    assert half.dtype == jnp.float32
    cosine = (np.asarray(half) * full).sum(axis=-1)
    assert cosine.min() > 0.999 and cosine.max() < 0.9999999
    gradient = jax.grad(lambda p: embed(p, config, packed, dtype=jnp.bfloat16, dropout=DropoutSeed(0, 0)).sum())(
        parameters
    )
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_dropout_does_not_depend_on_the_number_of_rows():
    """A block's hidden states are the same when it has empty rows more, and when it is the second of two blocks."""
    config, parameters = small_model()
    texts = random_texts(9)
    short, long = pack_texts(texts, None, 64, 0), pack_texts(texts, None, 64, 0, num_rows=12)
    assert short.tokens.shape[1] < 12
    run = jax.jit(functools.partial(embed, config=config, dropout=DropoutSeed(5, 6)))
    first = run(parameters, packed=short, first_block=1)
    np.testing.assert_allclose(run(parameters, packed=long, first_block=1), first, atol=1e-6)
    both = PackedTexts(*(np.concatenate([a, a]) for a in long))
    np.testing.assert_allclose(run(parameters, packed=both, first_block=0)[1], first[0], atol=1e-6)
    assert np.abs(run(parameters, packed=both, first_block=0)[0] - first[0]).max() > 1e-3


def test_dropout_happens_where_transformers_has_it():
    """Each rate alone changes the result; DistilBERT has no dropout after its attention, the others do."""
    packed = pack_texts(random_texts(10), None, 64, 0)
    keys = row_keys(DropoutSeed(0, 0), 0, 1, packed.tokens.shape[1])
    for rates in ({"hidden_dropout": 0.0}, {"attention_dropout": 0.0}):
        config, parameters = small_model(**rates)
        plain = run_encoder(parameters, config.encoder, packed)
        assert np.abs(run_encoder(parameters, config.encoder, packed, dropout=keys) - plain).max() > 1e-2
    config, parameters = small_model(hidden_dropout=0.0, attention_dropout=0.0)
    plain = run_encoder(parameters, config.encoder, packed)
    np.testing.assert_array_equal(run_encoder(parameters, config.encoder, packed, dropout=keys), plain)
