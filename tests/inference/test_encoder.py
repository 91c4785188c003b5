"""Encoder and `main.py embed`: the peer's embeddings, in input order, from any kind of model."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from data.tokenizer import load_tokenizer
from flags import Error
from inference.batching import make_calls
from inference.embed import EmbedConfig, embed, read_lines
from inference.encoder import Encoder
from model.files.convert import ConvertConfig, convert
from model.files.weights import load_model, read_config_only, save_model
from model.parameters import declare, initialize
from tests.peer_models import CASES, TEXTS


@pytest.mark.parametrize("name", CASES)
def test_encode_equals_sentence_transformers(peer_models, name):
    model = peer_models[name]
    embeddings = Encoder.load(model.sentence_transformers, devices=jax.devices()[:1]).encode(TEXTS)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, model.embeddings, atol=1e-5)


def test_encode_the_real_model(minilm, peer, tmp_path):
    """all-MiniLM-L6-v2 on sentences, over eight devices; sentence-transformers is the reference."""
    words = "red green blue small large old new fast slow cat dog bird fish tree house river stone road king queen"
    rng = np.random.default_rng()
    texts = [" ".join(rng.choice(words.split(), size=rng.integers(1, 40))) for _ in range(60)] + ["word " * 400]
    peer(
        "import numpy as np\nfrom sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(arguments['model'], device='cpu')\n"
        "np.save(arguments['output'], model.encode(arguments['texts']))\nresult = None",
        model=str(minilm), texts=texts, output=str(tmp_path / "expected.npy"),
    )
    encoder = Encoder.load(minilm, batch_tokens=512)
    np.testing.assert_allclose(encoder.encode(texts), np.load(tmp_path / "expected.npy"), atol=1e-5)


@pytest.fixture(scope="module")
def encoder(peer_models):
    return Encoder.load(peer_models["bert"].sentence_transformers, batch_tokens=128)


def test_order_and_duplicates(encoder):
    """Each text's embedding is that of the text alone, wherever it stands and however often."""
    rng = np.random.default_rng(1)
    texts = [TEXTS[index] for index in rng.integers(0, len(TEXTS), 200)] + ["  a man plays the guitar "]
    alone = {text: encoder.encode([text])[0] for text in TEXTS}
    expected = np.stack([alone[text] for text in texts[:-1]] + [alone["a man plays the guitar"]])
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)


def test_no_text_is_an_empty_array(encoder):
    assert encoder.encode([]).shape == (0, 32) and encoder.encode(iter([])).dtype == np.float32


@pytest.mark.parametrize("texts, error, message", [
    ("one text", TypeError, "expected a list of texts, not one str"),
    (b"one text", TypeError, "expected a list of texts, not one bytes"),
    (["a", None], TypeError, r"texts\[1\] is None of type NoneType, not a str"),
    ([b"x"], TypeError, r"texts\[0\] is b'x' of type bytes, not a str"),
    (["a", "b", 3.0], TypeError, r"texts\[2\] is 3.0 of type float, not a str"),
    (["\ud800"], ValueError, r"texts\[0\] is not Unicode"),
])
def test_what_is_no_text(encoder, texts, error, message):
    for function in (encoder.encode, encoder.token_counts):
        with pytest.raises(error, match=message):
            function(texts)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(peer_models, tmp_path, run_main, value):
    """All embeddings of a model, and those of texts with one token; nothing is written."""
    config, parameters, tokenizer_folder, _ = load_model(peer_models["bert"].sentence_transformers)
    tokenizer = load_tokenizer(tokenizer_folder)
    parameters["layers"]["up_bias"][1, 3] = value
    save_model(tmp_path / "model", config, parameters, tokenizer_folder)
    (tmp_path / "texts.txt").write_text("a\na\n\nx\n")
    done = run_main("embed", f"--model={tmp_path / 'model'}", f"--input={tmp_path / 'texts.txt'}",
                    f"--output={tmp_path / 'out.npy'}", check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(
        "4 of 4 embeddings are not finite, first that of 'a': the model's weights hold NaN or Inf, in layers/up_bias")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.txt"]

    parameters["layers"]["up_bias"][1, 3] = 0
    guitar = tokenizer.encode(["guitar"])[0][0]
    parameters["embeddings"]["token"][guitar, 0] = value
    with pytest.raises(ValueError, match=r"1 of 1 embeddings .* 'the guitar': .* hold NaN or Inf, in embeddings/token"):
        Encoder(config, parameters, tokenizer, devices=jax.devices()[:1]).encode(["the guitar"])
    assert np.isfinite(Encoder(config, parameters, tokenizer, devices=jax.devices()[:1]).encode(["a man"])).all()


def test_normalize_can_be_overridden(encoder):
    raw = encoder.encode(TEXTS, normalize=False)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(np.linalg.norm(raw[0]) - 1) > 0.1
    np.testing.assert_allclose(encoder.encode(TEXTS), unit, atol=1e-5)


def test_bfloat16_is_near_float32(peer_models, encoder):
    model = peer_models["bert"].sentence_transformers
    half = Encoder.load(model, dtype="bfloat16", devices=jax.devices()[:1]).encode(TEXTS)
    cosines = (half * encoder.encode(TEXTS)).sum(axis=1)
    assert half.dtype == np.float32 and 0.99 < cosines.min() < 1 - 1e-7


def test_parameters_of_a_training_run(peer_models):
    """Random parameters on a device; two seeds give two encoders."""
    config, folder = read_config_only(peer_models["bert"].sentence_transformers)
    first, second = (
        Encoder(
            config, initialize(declare(config), jax.random.key(seed)), load_tokenizer(folder), devices=jax.devices()[:2]
        ).encode(TEXTS)
        for seed in (0, 1)
    )
    assert first.shape == (len(TEXTS), 32) and np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("num_devices", [1, 3])
def test_calls_hold_every_text_once_in_few_shapes(num_devices):
    rng = np.random.default_rng(2)
    lengths = np.minimum(rng.geometric(0.05, 3000) + 2, 200)
    texts = [np.full(length, index, np.int32) for index, length in enumerate(lengths)]
    windows = [texts[start : start + 700] for start in range(0, len(texts), 700)]
    calls = list(make_calls(windows, 256, 1024, num_devices, pad_id=-1))
    seen = np.concatenate([call.text_indices[call.text_indices >= 0] for call in calls])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(texts)))
    for call in calls:
        for device, slot in np.argwhere(call.text_indices >= 0):
            index = call.text_indices[device, slot]
            row = call.packed.text_rows[device, slot]
            members = call.packed.segments[device, row] == call.packed.text_segments[device, slot]
            np.testing.assert_array_equal(call.packed.tokens[device, row][members], texts[index])
    assert len({call.packed.tokens.shape for call in calls}) <= 4  # rows of 64, 128, 256 tokens and one last call
    assert lengths.sum() / sum(call.packed.tokens.size for call in calls) > 0.9


def test_embed_command(peer_models, tmp_path, run_main):
    """A hub id from the hub's cache, texts from standard input, blank lines and a text with a carriage return."""
    model = peer_models["bert"]
    snapshot = tmp_path / "hub" / "models--org--small-bert" / "snapshots" / "0123abcd"
    shutil.copytree(model.sentence_transformers, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123abcd")
    output = tmp_path / "embeddings.npy"
    run_main(
        "embed", "--model=org/small-bert", "--input=-", f"--output={output}", input="\r\n".join(TEXTS) + "\n",
        env={"HF_HUB_CACHE": str(tmp_path / "hub")},
    )
    np.testing.assert_allclose(np.load(output), model.embeddings, atol=1e-5)
    assert [path.name for path in tmp_path.glob("*embeddings*")] == ["embeddings.npy"]


def test_embed_names_the_line_that_is_not_utf8(tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"fine\n\nbad \xff\n")
    with pytest.raises(ValueError, match=r"texts\.txt:3: not UTF-8"):
        read_lines(str(tmp_path / "texts.txt"))
    (tmp_path / "texts.txt").write_bytes("é\n\n".encode())
    assert read_lines(str(tmp_path / "texts.txt")) == ["é", ""]
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa\n\xef\xbb\xbf")
    assert read_lines(str(tmp_path / "texts.txt")) == ["\ufeffa", "\ufeff"]  # only the first is a byte-order mark
    for content in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "texts.txt").write_bytes(content)
        with pytest.raises(ValueError, match="is empty"):
            read_lines(str(tmp_path / "texts.txt"))


@pytest.mark.parametrize("source, output, error, message", [
    ("texts.txt", "file/out.npy", ValueError, "out.npy: .*file is not a folder"),
    ("texts.txt", "gone/out.npy", ValueError, "out.npy: .*gone is not a folder"),
    ("texts.txt", "folder", ValueError, "--output=.*folder is a folder: name a file in it"),
    ("texts.txt", "out.txt", Error, "--output=.*out.txt does not end in .npy"),
    ("folder", "out.npy", ValueError, "--input=.*folder is a folder: name a text file in it"),
    ("gone.txt", "out.npy", ValueError, "--input=.*gone.txt does not exist"),
])
def test_embed_checks_paths_first(tmp_path, source, output, error, message):
    """The model, which does not exist, is not looked at."""
    (tmp_path / "texts.txt").write_text("a\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=message):
        embed(EmbedConfig("unused", str(tmp_path / source), str(tmp_path / output)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "texts.txt"]


def test_embed_from_a_closed_standard_input(tmp_path, run_main):
    done = run_main("embed", "--model=unused", "--input=-", f"--output={tmp_path / 'out.npy'}", check=False,
                    preexec_fn=lambda: os.close(0))
    assert done.returncode == 1
    assert "--input=- reads standard input, which is closed: name a file" in done.stderr.splitlines()[-1]


def test_embed_failure_keeps_the_old_output(tmp_path, run_main):
    (tmp_path / "texts.txt").write_text("a\n")
    (tmp_path / "out.npy").write_text("old")
    done = run_main("embed", f"--model={tmp_path}", f"--input={tmp_path / 'texts.txt'}",
                    f"--output={tmp_path / 'out.npy'}", check=False)
    assert done.returncode == 1 and "is no model" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "texts.txt"]
    assert (tmp_path / "out.npy").read_text() == "old"


def test_max_length(peer_models, logged):
    folder = peer_models["roberta"].sentence_transformers
    long = Encoder.load(folder, max_length=63, devices=jax.devices()[:1])
    assert logged() == ["max_length=63 is above the position table: texts are cut at its 62 tokens"]
    assert long.encode(TEXTS).shape == (len(TEXTS), 32) and long.token_counts(["x " * 100]) == 62
    with pytest.raises(ValueError, match="max_length=2 leaves no room for a token"):
        Encoder.load(folder, max_length=2)
    short = Encoder.load(folder, max_length=5, devices=jax.devices()[:1])
    assert [len(tokens) for tokens in short._tokenize(TEXTS)] == [
        min(5, len(tokens) + 2) for tokens in short.tokenizer.encode(TEXTS)
    ]


def test_a_tokenizer_of_another_model(peer_models):
    model = load_model(peer_models["bert"].sentence_transformers)
    encoder = dataclasses.replace(model.config.encoder, vocab_size=50)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the model's embedding table 50"):
        Encoder(dataclasses.replace(model.config, encoder=encoder), {}, load_tokenizer(model.tokenizer_folder))


def test_our_format_embeds_the_same(peer_models, tmp_path):
    model = peer_models["bert-cls-dense"]
    convert(ConvertConfig(str(model.sentence_transformers), str(tmp_path / "ours")))
    embeddings = Encoder.load(tmp_path / "ours", devices=jax.devices()[:1]).encode(TEXTS)
    np.testing.assert_allclose(embeddings, model.embeddings, atol=1e-5)
