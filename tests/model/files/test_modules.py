"""Heads of sentence-transformers: several pooling modes, activations of Dense, Normalize and Dropout anywhere."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from data.tokenizer import load_tokenizer
from inference.encoder import Encoder
from model.config import DenseConfig
from model.files.convert import ConvertConfig, convert
from model.files.export import ModelCard, export_sentence_transformers
from model.files.weights import load_model, read_config_only, save_model
from model.parameters import declare, initialize
from tests.peer_models import TEXTS

CASES = {  # name -> (transformer, pooling modes, modules: the activation of a Dense, or another module)
    "flags": ("roberta", ["cls", "mean"], ["Normalize"]),
    "all": ("bert", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"],
            ["GELU", "Normalize", "ReLU", "Dropout", "Sigmoid", "Normalize"]),
    "other-order": ("distilbert", ["lasttoken", "max", "cls"], ["Normalize", "SiLU"]),
    "weighted": ("xlm-roberta", ["weightedmean"], ["Dropout", "Tanh", "Identity", "Dropout"]),
    "square-root": ("bert", ["mean_sqrt_len_tokens"], ["Normalize", "Normalize"]),
}
MAKE = """
import os, torch
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling

torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
for name, (transformer, modes, kinds) in arguments["cases"].items():
    place = os.path.join(arguments["folder"], name)
    pooling = Pooling(32, pooling_mode=modes)
    modules, width = [Transformer(arguments["transformers"][transformer]), pooling], pooling.get_embedding_dimension()
    for number, kind in enumerate(kinds):
        if kind == "Normalize":
            modules.append(Normalize())
        elif kind == "Dropout":
            modules.append(Dropout(0.5))
        else:
            activation = getattr(torch.nn, kind)()
            modules.append(Dense(width, 20 + number, bias=number % 2 == 0, activation_function=activation))
            width = 20 + number
    whole = SentenceTransformer(modules=modules, device="cpu")
    whole.save(place)
    np.save(place + ".npy", whole.encode(arguments["texts"]))
result = None
"""
ENCODE = """
import numpy as np
from sentence_transformers import SentenceTransformer
for folder in arguments["folders"]:
    np.save(folder + ".npy", SentenceTransformer(folder, device="cpu").encode(arguments["texts"]))
result = None
"""


@pytest.fixture(scope="module")
def made(peer_models, peer, tmp_path_factory):
    """name -> (folder of sentence-transformers, its embeddings of TEXTS, our export of it, converted twice)."""
    parent = tmp_path_factory.mktemp("modules")
    peer(MAKE, texts=TEXTS, folder=str(parent), cases=CASES,
         transformers={name: str(model.transformers) for name, model in peer_models.items()})
    for name in CASES:
        config, parameters, tokenizer_folder, _ = load_model(parent / name)
        export_sentence_transformers(parent / f"{name}-export", config, parameters, tokenizer_folder, ModelCard(name))
        convert(ConvertConfig(str(parent / name), str(parent / f"{name}-ours")))
        convert(ConvertConfig(str(parent / f"{name}-ours"), str(parent / f"{name}-theirs")))
    peer(ENCODE, texts=TEXTS,
         folders=[str(parent / f"{name}-{kind}") for name in CASES for kind in ("export", "theirs")])
    return parent


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(made, name):
    """We embed as sentence-transformers does; so does it with our export, and with what was converted twice."""
    expected = np.load(made / f"{name}.npy")
    for folder in (name, f"{name}-export", f"{name}-ours", f"{name}-theirs"):
        encoder = Encoder.load(made / folder, devices=jax.devices()[:1])
        assert encoder.config.pooling == "+".join(CASES[name][1])
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    for folder in (f"{name}-export", f"{name}-theirs"):
        np.testing.assert_allclose(np.load(made / f"{folder}.npy"), expected, atol=1e-5)
    pooling = json.loads((made / f"{name}-export" / "1_Pooling" / "config.json").read_text())
    assert ("pooling_mode" in pooling) == (name == "other-order")  # which only sentence-transformers 6 reads


def test_flags_have_one_order(made, tmp_path):
    source = shutil.copytree(made / "flags", tmp_path / "source")
    flags = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
             "pooling_mode_cls_token": True}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    assert load_model(source).config.pooling == "cls+mean"
    (source / "1_Pooling" / "config.json").write_text(json.dumps(flags | {"pooling_mode": ["max", "cls"]}))
    assert load_model(source).config.pooling == "max+cls"


def test_short_names_of_activations(made, tmp_path):
    source = shutil.copytree(made / "other-order", tmp_path / "source")
    config = json.loads((source / "3_Dense" / "config.json").read_text())
    for theirs, ours in (("torch.nn.GELU", "gelu"), ("torch.nn.Identity", "identity"), ("torch.nn.SiLU", "silu")):
        (source / "3_Dense" / "config.json").write_text(json.dumps(config | {"activation_function": theirs}))
        assert load_model(source).config.dense == (DenseConfig(96, 21, False, ours, normalize_input=True),)


def test_dropout_is_left_out_with_one_line(made, logged):
    load_model(made / "weighted")
    assert [line for line in logged(0) if "Dropout" in line] == [
        f"{made / 'weighted' / 'modules.json'}: the Dropout after pooling is left out, as it changes no embedding"]


def test_train_from_such_a_model(tiny_model, tiny_flags, run_main, peer, tmp_path):
    """A run keeps the heads, changes their weights, and sentence-transformers embeds with its export as we do."""
    config, tokenizer_folder = read_config_only(tiny_model)
    heads = (DenseConfig(64, 24, True, "gelu"), DenseConfig(24, 16, True, "tanh", normalize_input=True))
    config = dataclasses.replace(config, pooling="cls+mean", dense=heads)
    parameters = jax.tree.map(np.asarray, initialize(declare(config), jax.random.key(0)))
    save_model(tmp_path / "init", config, parameters, tokenizer_folder)
    run_main("train", *tiny_flags, "--num_steps=3", "--warmup_steps=0", f"--init={tmp_path / 'init'}",
             "--norandom_init", f"--workdir={tmp_path / 'run'}")
    export = tmp_path / "run" / "export"
    trained = load_model(export)
    assert (trained.config.pooling, trained.config.dense) == ("cls+mean", heads)
    for name in ("dense_0", "dense_1"):
        assert all((trained.parameters[name][part] != parameters[name][part]).any() for part in ("kernel", "bias"))
    peer(ENCODE, texts=TEXTS, folders=[str(export)])
    tokenizer = load_tokenizer(trained.tokenizer_folder)
    ours = Encoder(trained.config, trained.parameters, tokenizer, devices=jax.devices()[:1])
    np.testing.assert_allclose(ours.encode(TEXTS), np.load(f"{export}.npy"), atol=1e-5)
