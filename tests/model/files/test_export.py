"""`export`: sentence-transformers loads the folder and embeds as we do."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest

from data.tokenizer import load_tokenizer
from inference.encoder import Encoder
from model.files.convert import ConvertConfig, convert
from model.files.export import ExportConfig, ModelCard, export, export_sentence_transformers
from model.files.weights import load_model, read_config_only
from tests.peer_models import CASES, TEXTS

CARD = ModelCard(
    name="small-model",
    base_model="nreimers/MiniLM-L6-H384-uncased",
    datasets=(("captions", 12345), ("questions", 67)),
    recipe=(("learning_rate", "2e-05"), ("global_batch_size", "1024")),
    scores=(("STS-B dev", "cosine Spearman x 100", 81.234),),
    license="apache-2.0",
    language="en",
)
ENCODE = """
import numpy as np
import yaml
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer
result = {}
for name, folder in arguments["folders"].items():
    model = SentenceTransformer(folder, device="cpu")
    np.save(folder + ".npy", model.encode(arguments["texts"]))
    header = yaml.safe_load(open(folder + "/README.md").read().split("---")[1])
    length = AutoTokenizer.from_pretrained(folder).model_max_length
    result[name] = [header, length, model.max_seq_length, [type(module).__name__ for module in model]]
"""


def with_pooler(model):
    """The same model, embedding with BERT's pooler layer."""
    encoder = dataclasses.replace(model.config.encoder, pooler=True)
    return model._replace(config=dataclasses.replace(model.config, encoder=encoder, pooling="pooler"))


@pytest.fixture(scope="module")
def exported(peer_models, peer, tmp_path_factory):
    """name -> (model, folder, what the peer says of the folder)."""
    parent = tmp_path_factory.mktemp("exported")
    models = {name: load_model(peer_models[name].sentence_transformers) for name in CASES}
    models["pooler"] = with_pooler(models["bert-cls-dense"])
    lower_case = parent / "source"
    shutil.copytree(peer_models["roberta"].sentence_transformers, lower_case)
    (lower_case / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": true}')
    models["lower-case"] = load_model(lower_case)
    for name, model in models.items():
        export_sentence_transformers(parent / name, model.config, model.parameters, model.tokenizer_folder, CARD)
    said = peer(ENCODE, texts=TEXTS, folders={name: str(parent / name) for name in models})
    return {name: (model, parent / name, said[name]) for name, model in models.items()}


@pytest.mark.parametrize("name", [*CASES, "pooler", "lower-case"])
def test_sentence_transformers_embeds_the_same(exported, peer_models, name):
    model, folder, (_, tokenizer_length, max_length, modules) = exported[name]
    theirs = np.load(f"{folder}.npy")
    tokenizer = load_tokenizer(model.tokenizer_folder)
    ours = Encoder(model.config, model.parameters, tokenizer, devices=jax.devices()[:1]).encode(TEXTS)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    if name in CASES:
        np.testing.assert_allclose(theirs, peer_models[name].embeddings, atol=1e-5)
    if name == "lower-case":
        assert np.abs(theirs - peer_models["roberta"].embeddings).max() > 0.01
    assert tokenizer_length == max_length == 40
    heads = len(model.config.dense) + (name == "pooler")
    assert modules == ["Transformer", "Pooling", *["Dense"] * heads, *["Normalize"] * model.config.normalize]


def test_we_read_what_we_export(exported):
    model, folder, _ = exported["bert-cls-dense"]
    again = load_model(folder)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.parameters, model.parameters)


def test_model_card(exported):
    _, folder, (header, *_) = exported["bert"]
    assert header == {
        "library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity", "language": "en",
        "license": "apache-2.0", "base_model": "nreimers/MiniLM-L6-H384-uncased",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity"],
    }
    text = (folder / "README.md").read_text()
    for part in ('SentenceTransformer(".")', "| captions | 12,345 |", "--global_batch_size=1024",
                 "| STS-B dev | cosine Spearman x 100 | 81.23 |", "2 layers of 32", "mean pooling, L2 normalisation"):
        assert part in text, part


def test_replace(peer_models, tmp_path):
    model = load_model(peer_models["bert"].sentence_transformers)
    arguments = (tmp_path / "best", model.config, model.parameters, model.tokenizer_folder)
    export_sentence_transformers(*arguments, CARD)
    with pytest.raises(ValueError, match="best is not empty"):
        export_sentence_transformers(*arguments, CARD)
    export_sentence_transformers(*arguments, dataclasses.replace(CARD, name="second"), replace=True)
    assert "# second" in (tmp_path / "best" / "README.md").read_text()
    with pytest.raises(ValueError, match="no tokenizer in"):
        export_sentence_transformers(*arguments[:3], tmp_path, CARD, replace=True)
    assert "# second" in (tmp_path / "best" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("umask, file_mode, folder_mode", [(0o077, 0o600, 0o700), (0o027, 0o640, 0o750)])
def test_the_umask_decides_permissions(peer_models, tmp_path, umask, file_mode, folder_mode):
    """Of export from a MODEL and from a WORKDIR, and of convert both ways; the source's do not matter."""
    source = shutil.copytree(peer_models["bert-cls-dense"].sentence_transformers, tmp_path / "source")
    for path in (source, *source.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "run").mkdir()
    source.rename(tmp_path / "run" / "export")
    former = os.umask(umask)
    try:
        export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "written" / "copy")))
        export(ExportConfig(str(tmp_path / "run" / "export"), str(tmp_path / "written" / "model")))
        convert(ConvertConfig(str(tmp_path / "run"), str(tmp_path / "written" / "ours")))
        convert(ConvertConfig(str(tmp_path / "written" / "ours"), str(tmp_path / "written" / "theirs")))
    finally:
        os.umask(former)
    written = [tmp_path / "written", *(tmp_path / "written").rglob("*")]
    assert len(written) > 40
    for path in written:
        assert path.stat().st_mode & 0o777 == (folder_mode if path.is_dir() else file_mode), path


def test_a_linked_folder_is_copied(peer_models, tmp_path):
    source = shutil.copytree(peer_models["bert-cls-dense"].sentence_transformers, tmp_path / "run" / "export")
    (source / "1_Pooling").rename(tmp_path / "elsewhere")
    (source / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "copy")))
    assert not (tmp_path / "copy" / "1_Pooling").is_symlink()
    assert load_model(tmp_path / "copy").config == load_model(source).config


def test_the_usage_of_the_model_card_runs_in_its_folder(exported, processes, peer):
    _, folder, _ = exported["bert"]
    python = peer("import sys; result = sys.executable")
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = processes.run([python, "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("tensor([["), done.stderr[-2000:]


def test_a_workdir_is_taken_as_its_export(peer_models, tmp_path):
    """Wherever a MODEL is taken; a folder that is a model itself is that model."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copytree(peer_models["bert"].sentence_transformers, run / "export")
    expected = load_model(run / "export")
    assert load_model(run).config == expected.config and read_config_only(run)[0].max_length == 40
    assert load_tokenizer(run).fingerprint == load_tokenizer(run / "export").fingerprint
    np.testing.assert_allclose(
        Encoder.load(run, devices=jax.devices()[:1]).encode(TEXTS), peer_models["bert"].embeddings, atol=1e-5)
    convert(ConvertConfig(str(run), str(tmp_path / "ours")))
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "ours").parameters, expected.parameters)
    shutil.copytree(peer_models["roberta"].sentence_transformers, tmp_path / "ours" / "export")
    assert load_model(tmp_path / "ours").config.encoder.family == "bert"


def test_export_command(peer_models, tmp_path, run_main):
    """A MODEL, then a training run's folder whose best model that is."""
    run_main("export", f"--source={peer_models['roberta'].transformers}", f"--target={tmp_path / 'run' / 'export'}")
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "copy")))
    names = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert names >= {"modules.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "README.md", "1_Pooling/config.json", "sentence_bert_config.json"}
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "roberta"


@pytest.mark.parametrize("mark", ["checkpoints", "metrics.jsonl", "lock"])
def test_a_run_without_an_export(tmp_path, mark):
    (tmp_path / "run" / mark).mkdir(parents=True)
    for read in (load_model, read_config_only, load_tokenizer):
        with pytest.raises(ValueError, match="run is a training run without an export yet"):
            read(tmp_path / "run")
    with pytest.raises(ValueError, match=r"without an export yet: .* `main\.py train` command continues it"):
        export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "out")))
