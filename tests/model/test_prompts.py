"""Prompts of a model: kept by export and convert, and used as sentence-transformers uses them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data.examples import Prompts
from inference.encoder import Encoder
from model.files.convert import ConvertConfig, convert
from model.files.export import ModelCard, export_sentence_transformers
from model.files.modules import retrieval_prompts
from model.files.weights import load_model
from tests.peer_models import CASES, TEXTS

PROMPTS = (("query", "query: "), ("document", "a passage: "))
ENCODE = """
import numpy as np
from sentence_transformers import SentenceTransformer
for folder in arguments["folders"]:
    model = SentenceTransformer(folder, device="cpu")
    np.save(folder + "-query.npy", model.encode_query(arguments["texts"]))
    np.save(folder + "-document.npy", model.encode_document(arguments["texts"]))
    np.save(folder + "-.npy", model.encode(arguments["texts"]))
result = None
"""


def with_prompts(model, prompts=PROMPTS):
    return model._replace(config=dataclasses.replace(model.config, prompts=prompts))


@pytest.fixture(scope="module")
def exported(peer_models, peer, tmp_path_factory):
    """name -> folder of the model with prompts, which the peer has embedded TEXTS with."""
    folders = {name: tmp_path_factory.mktemp("exported") / name for name in (*CASES, "default")}
    for name, folder in folders.items():
        model = with_prompts(load_model(peer_models["bert" if name == "default" else name].sentence_transformers))
        config, parameters, tokenizer_folder, _ = model
        if name == "default":
            config = dataclasses.replace(config, default_prompt_name="document")
        export_sentence_transformers(folder, config, parameters, tokenizer_folder, ModelCard(name))
    peer(ENCODE, texts=TEXTS, folders=list(map(str, folders.values())))
    return folders


@pytest.mark.parametrize("name", CASES)
def test_as_sentence_transformers(exported, name):
    encoder = Encoder.load(exported[name])
    assert retrieval_prompts(encoder.config) == Prompts(*dict(PROMPTS).values())
    by_prompt = {prompt: encoder.encode(TEXTS, prompt_name=prompt) for prompt in ("query", "document", "")}
    for prompt, embeddings in by_prompt.items():
        np.testing.assert_allclose(embeddings, np.load(f"{exported[name]}-{prompt}.npy"), atol=1e-5)
    by_hand = encoder.encode([f"query: {text}" for text in TEXTS if text])
    np.testing.assert_allclose(by_hand, by_prompt["query"][[bool(text) for text in TEXTS]], atol=1e-5)
    assert np.abs(by_prompt["query"] - by_prompt["document"]).max() > 0.01 < np.abs(by_hand[0] - by_prompt[""][0]).max()


def test_default_prompt(exported, tmp_path, run_main):
    """Taken by encode and embed unless they are told another one, or none; kept by export and convert."""
    folder, texts, output = exported["default"], tmp_path / "texts", tmp_path / "embeddings.npy"
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["default_prompt_name"] == "document"
    expected = np.load(f"{folder}-.npy")
    np.testing.assert_array_equal(expected, np.load(f"{folder}-document.npy"))
    convert(ConvertConfig(str(folder), str(tmp_path / "ours")))
    convert(ConvertConfig(str(tmp_path / "ours"), str(tmp_path / "theirs")))
    for place in (folder, tmp_path / "ours", tmp_path / "theirs"):
        np.testing.assert_allclose(Encoder.load(place).encode(TEXTS), expected, atol=1e-5)
    encoder, plain = Encoder.load(folder), Encoder.load(exported["bert"])
    np.testing.assert_allclose(
        encoder.encode(TEXTS, prompt_name="query"), np.load(f"{folder}-query.npy"), atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(TEXTS, prompt_name=""), plain.encode(TEXTS))
    assert encoder.fingerprint() == plain.fingerprint()
    texts.write_text("\n".join(TEXTS) + "\n")
    for flags, embeddings in (([], expected), (["--prompt_name="], np.load(f"{exported['bert']}-.npy"))):
        run_main("embed", f"--model={folder}", f"--input={texts}", f"--output={output}", *flags)
        np.testing.assert_allclose(np.load(output), embeddings, atol=1e-5)


@pytest.mark.parametrize("settings, prompts, default", [
    ({"prompts": {"a": "a: "}, "default_prompt_name": "a"}, (("a", "a: "),), "a"),
    ({"prompts": {"a": None}, "default_prompt_name": "a"}, (("a", ""),), "a"),
    ({"prompts": None, "default_prompt_name": "query"}, (("query", ""),), "query"),
    ({"prompts": {"a": "a: "}, "default_prompt_name": None}, (("a", "a: "),), ""),
])
def test_default_prompts_of_others(exported, tmp_path, settings, prompts, default):
    folder = shutil.copytree(exported["bert"], tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    config = load_model(folder).config
    assert (config.prompts, config.default_prompt_name) == (prompts, default)


def test_export_and_convert_keep_them(exported, tmp_path):
    folder = exported["bert-cls-dense"]
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == dict(PROMPTS) and settings["default_prompt_name"] is None
    assert "model.encode_query(" in (folder / "README.md").read_text()
    convert(ConvertConfig(str(folder), str(tmp_path / "ours")))
    convert(ConvertConfig(str(tmp_path / "ours"), str(tmp_path / "theirs")))
    for place in (folder, tmp_path / "ours", tmp_path / "theirs"):
        assert load_model(place).config.prompts == PROMPTS


def test_a_folder_of_ours_from_before_prompts(exported, tmp_path):
    convert(ConvertConfig(str(exported["bert"]), str(tmp_path / "ours")))
    description = json.loads((tmp_path / "ours" / "allpairs.json").read_text())
    del description["model"]["prompts"]
    (tmp_path / "ours" / "allpairs.json").write_text(json.dumps(description))
    assert load_model(tmp_path / "ours").config.prompts == ()


def test_embed_command(exported, tmp_path, run_main):
    texts, output = tmp_path / "texts", tmp_path / "embeddings.npy"
    texts.write_text("\n".join(TEXTS) + "\n")
    flags = ("embed", f"--model={exported['roberta']}", f"--input={texts}", f"--output={output}")
    run_main(*flags, "--prompt_name=query")
    np.testing.assert_allclose(np.load(output), np.load(f"{exported['roberta']}-query.npy"), atol=1e-5)
    done = run_main(*flags, "--prompt_name=passage", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("prompt_name='passage' is unknown: the model has query, document")


def test_a_model_without_prompts(peer_models):
    encoder = Encoder.load(peer_models["bert"].transformers)
    assert retrieval_prompts(encoder.config) == Prompts()
    with pytest.raises(ValueError, match="prompt_name='query' is unknown: the model has no prompts"):
        encoder.encode(TEXTS, prompt_name="query")


@pytest.mark.parametrize("prompts, expected", [
    ({"query": "q: ", "passage": "p: "}, Prompts("q: ", "p: ")),
    ({"corpus": "c: ", "document": None, "other": "o: "}, Prompts("", "")),
])
def test_names_of_others(exported, tmp_path, prompts, expected):
    folder = shutil.copytree(exported["bert"], tmp_path / "model")
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": prompts}))
    assert retrieval_prompts(load_model(folder).config) == expected


@pytest.mark.parametrize("file, values, message", [
    ("config_sentence_transformers.json", {"prompts": {"a": "b "}, "default_prompt_name": "c"},
     "default_prompt_name='c' is not one of its prompts: a"),
    ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt is false"),
])
def test_what_is_not_supported(exported, tmp_path, file, values, message):
    folder = shutil.copytree(exported["bert"], tmp_path / "model")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
    with pytest.raises(ValueError, match=message):
        load_model(folder)
