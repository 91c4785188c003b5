"""Reading every kind of model folder, writing it back byte for byte, and one clear error for each bad folder."""

import json
import logging
import resource
import shutil
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data.tokenizer import load_tokenizer
from model.files.convert import ConvertConfig, convert
from model.files.folders import find_model
from model.files.weights import load_model, read_config_only
from tests.peer_models import CASES

PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "distilbert": "distilbert."}
HEADS = {
    "bert": "cls.predictions.bias", "roberta": "lm_head.dense.weight", "xlm-roberta": "lm_head.bias",
    "distilbert": "vocab_transform.weight",
}


def there_and_back(source: Path, folder: Path) -> Path:
    convert(ConvertConfig(str(source), str(folder / "ours")))
    assert (folder / "ours" / "allpairs.json").exists() and not (folder / "ours" / "config.json").exists()
    convert(ConvertConfig(str(folder / "ours"), str(folder / "theirs")))
    return folder / "theirs"


def assert_same_tensors(first: Path, second: Path) -> None:
    expected, found = load_file(first), load_file(second)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (tensor.dtype, tensor.shape) == (found[name].dtype, found[name].shape), name
        assert tensor.tobytes() == found[name].tobytes(), name


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a Hugging Face folder whose tensors are change(tensors)."""
    shutil.copytree(source, target)
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("name", CASES)
def test_round_trip_of_a_sentence_transformers_folder(peer_models, tmp_path, name):
    source = peer_models[name].sentence_transformers
    back = there_and_back(source, tmp_path)
    weights = sorted(path.relative_to(source) for path in source.rglob("*.safetensors"))
    assert weights == sorted(path.relative_to(back) for path in back.rglob("*.safetensors"))
    for path in weights:
        assert_same_tensors(source / path, back / path)
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert load_model(back).config == load_model(source).config


def test_round_trip_of_the_real_model(minilm, tmp_path):
    back = there_and_back(minilm, tmp_path)
    assert_same_tensors(minilm / "model.safetensors", back / "model.safetensors")  # its position_ids too
    source_config, config = (json.loads((folder / "config.json").read_text()) for folder in (minilm, back))
    assert config.items() <= source_config.items()


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip_of_a_pretraining_checkpoint(peer_models, tmp_path, name, dtype):
    """With a prefix, a head, a buffer and in any float dtype; the parameters are those of the plain folder, rounded."""
    plain = peer_models[name].transformers
    prefix = PREFIXES[name]

    def change(tensors):
        changed = {prefix + key: tensor.astype(dtype) for key, tensor in tensors.items()}
        changed[HEADS[name]] = np.arange(6, dtype=np.float32).reshape(2, 3)
        changed[prefix + "embeddings.position_ids"] = np.arange(64)[None]
        return changed

    source = rewrite(plain, tmp_path / "source", change)
    back = there_and_back(source, tmp_path)
    assert_same_tensors(source / "model.safetensors", back / "model.safetensors")
    expected = load_model(plain).parameters["layers"]["qkv_kernel"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(load_model(tmp_path / "ours").parameters["layers"]["qkv_kernel"], expected)


def test_old_layer_norm_names(peer_models, tmp_path):
    plain = peer_models["bert"].transformers

    def change(tensors):
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for today, once in old.items():
            tensors = {key.replace(today, once): tensor for key, tensor in tensors.items()}
        return tensors

    source = rewrite(plain, tmp_path / "source", change)
    assert "encoder.layer.0.output.LayerNorm.gamma" in load_file(source / "model.safetensors")
    back = there_and_back(source, tmp_path)
    assert_same_tensors(source / "model.safetensors", back / "model.safetensors")


def shard(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return target


def test_sharded_checkpoint(peer_models, tmp_path):
    plain = peer_models["roberta"].transformers
    source = shard(plain, tmp_path / "source")
    back = there_and_back(source, tmp_path)
    assert_same_tensors(plain / "model.safetensors", back / "model.safetensors")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json names files that are not there: model-00002-of-00002"):
        load_model(source)


def test_pickle_checkpoint(peer_models, tmp_path):
    torch = pytest.importorskip("torch")
    plain = peer_models["distilbert"].transformers
    source = tmp_path / "source"
    shutil.copytree(plain, source)
    (source / "model.safetensors").unlink()
    tensors = load_file(plain / "model.safetensors")
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, source / "pytorch_model.bin")
    back = there_and_back(source, tmp_path)
    assert_same_tensors(plain / "model.safetensors", back / "model.safetensors")
    half = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in tensors.items()}
    torch.save(half, source / "pytorch_model.bin")
    name = "embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(
        load_model(source).parameters["embeddings"]["token"],
        tensors[name].astype(ml_dtypes.bfloat16).astype(np.float32),
    )
    (source / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a PyTorch checkpoint"):
        load_model(source)


def test_pickle_checkpoint_without_torch(peer_models, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(peer_models["bert"].transformers, source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .* needs the torch extra: pip install"):
        load_model(source)


def test_every_wrong_tensor_in_one_error(peer_models, tmp_path):
    def change(tensors):
        del tensors["encoder.layer.1.output.dense.bias"], tensors["embeddings.LayerNorm.weight"]
        tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
        tensors["encoder.classifier.weight"] = np.zeros((2, 32), np.float32)
        tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((32, 48), np.float32)
        tensors["embeddings.token_type_embeddings.weight"] = np.zeros((2, 32), np.int32)
        return tensors

    source = rewrite(peer_models["bert"].transformers, tmp_path / "source", change)
    with pytest.raises(ValueError) as error:
        convert(ConvertConfig(str(source), str(tmp_path / "ours")))
    for part in (
        str(source), "6 tensors",
        "missing: encoder.layer.1.output.dense.bias (32,)", "missing: embeddings.LayerNorm.weight (32,)",
        "unknown: encoder.layer.2.output.dense.bias (32,)", "unknown: encoder.classifier.weight (2, 32)",
        "wrong shape: encoder.layer.0.intermediate.dense.weight is (32, 48), its config says (48, 32)",
        "wrong dtype: embeddings.token_type_embeddings.weight is int32",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "ours").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("with_prefix", [False, True])
def test_heads_of_tasks(peer_models, tmp_path, logged, name, with_prefix):
    """Left out with one line, whatever they are called and whatever type they have; kept by convert."""
    plain, prefix = peer_models[name].transformers, PREFIXES[name] if with_prefix else ""
    heads = ("classifier.dense.weight", "cls.predictions.bias", "lm_head.bias", "qa_outputs.weight",
             "pre_classifier.bias", "classifier.out_proj.weight", "some_head.0.x", "logit_scale", "fit_denses.1.bias")

    def change(tensors):
        changed = {prefix + key: tensor for key, tensor in tensors.items()}
        changed |= {head: np.arange(6).reshape(2, 3) for head in heads}
        changed[prefix + "embeddings.position_ids"] = np.arange(64)[None]
        return changed

    source = rewrite(plain, tmp_path / "source", change)
    model = load_model(source)
    line = (f"{source}: left out, as they are no part of the encoder: classifier.*, cls.*, fit_denses.*, lm_head.*, "
            "logit_scale, pre_classifier.*, qa_outputs.*, some_head.*")
    assert logged(logging.INFO) == [line]
    jax.tree.map(np.testing.assert_array_equal, model.parameters, load_model(plain).parameters)
    back = there_and_back(source, tmp_path)
    assert_same_tensors(source / "model.safetensors", back / "model.safetensors")


def test_unknown_tensors_in_the_encoder(peer_models, tmp_path):
    """What has the encoder's prefix is a part of it, whatever else it is called."""
    def change(tensors):
        return {"roberta." + key: tensor for key, tensor in tensors.items()} | {
            "roberta.adapter.bias": np.zeros(3, np.float32)}

    source = rewrite(peer_models["roberta"].transformers, tmp_path / "source", change)
    with pytest.raises(ValueError, match=r"1 tensors do not fit the model: unknown: adapter.bias \(3,\)"):
        load_model(source)
    source = rewrite(peer_models["distilbert"].transformers, tmp_path / "distilbert", lambda tensors: tensors | {
        "pooler.dense.bias": np.zeros(32, np.float32)})
    with pytest.raises(ValueError, match=r"unknown: pooler.dense.bias \(32,\)"):  # DistilBERT has no pooler
        load_model(source)


def test_damaged_parameters_of_ours(peer_models, tmp_path):
    ours = tmp_path / "ours"
    convert(ConvertConfig(str(peer_models["bert"].transformers), str(ours)))
    tensors = load_file(ours / "parameters.safetensors")
    save_file({"layers/up_kernel": tensors["layers/up_kernel"]}, ours / "parameters.safetensors")
    with pytest.raises(ValueError, match=r"missing: embeddings/norm_bias \(32,\); missing: embeddings/norm_scale"):
        load_model(ours)
    (ours / "allpairs.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"allpairs\.json does not describe a model"):
        load_model(ours)


@pytest.mark.parametrize("damage", ["header length", "header", "truncated", "empty"])
def test_safetensors_with_a_wrong_header(peer_models, tmp_path, damage):
    source = tmp_path / "source"
    shutil.copytree(peer_models["bert"].transformers, source)
    path = source / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({
        "header length": struct.pack("<Q", 1 << 40) + content[8:],
        "header": content[:8] + b"?" + content[9:],
        "truncated": content[:-10],
        "empty": b"",
    }[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_model(source)


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"is no model: .*allpairs\.json .* no modules\.json .* no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="'gpt2' is not one of bert"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="is a file: a model is a folder"):
        find_model(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"there is no folder .*/nothing"):
        find_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="there is no folder no-such/model, and as a hub id"):
        find_model("no-such/model")


def test_no_weights(peer_models, tmp_path):
    shutil.copytree(peer_models["bert"].transformers, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights: none of model\.safetensors, .* pytorch_model\.bin"):
        load_model(tmp_path / "source")


@pytest.mark.parametrize("change, message", [
    (("1_Pooling", {"pooling_mode": ["mean", "median"]}), r"pooling mean \+ median; the modes are cls, max, mean"),
    (("1_Pooling", {"pooling_mode": []}), "pooling without a mode"),
    (("1_Pooling", {"pooling_mode": ["cls", "mean"]}), "dense_0 takes 32 features, but is given 64"),
    (("2_Dense", {"in_features": 32, "out_features": 24, "activation_function": "torch.nn.ELU"}), "'torch.nn.ELU'"),
    (("2_Dense", {"in_features": 32, "out_features": 24, "activation_function": None}), "None is not one of torch"),
    (("2_Dense", {"in_features": 32, "out_features": 24, "use_residual": True}), "use_residual"),
    (("2_Dense", {"in_features": 32}), "2_Dense/config.json: in_features and out_features must both be given"),
    (("2_Dense", {"in_features": 32, "out_features": 24, "module_input_name": "token_embeddings"}),
     "2_Dense/config.json: a module on other than sentence_embedding"),
    (("3_Normalize", {"module_input_name": "token_embeddings"}), "3_Normalize/config.json: a module on other than"),
    (("2_Dense", {"in_features": 31, "out_features": 24}), "dense_0 takes 31 features, but is given 32"),
])
def test_modules_that_the_model_does_not_have(peer_models, tmp_path, change, message):
    source = tmp_path / "source"
    shutil.copytree(peer_models["bert-cls-dense"].sentence_transformers, source)
    module, config = change
    (source / module / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(source)


def test_old_module_files(peer_models, tmp_path):
    """The form of sentence-transformers 0.x to 2: the transformer in a subfolder, flags for pooling, old type names."""
    model = peer_models["bert-cls-dense"]
    source = tmp_path / "source"
    shutil.copytree(model.sentence_transformers, source)
    old = source / "0_Transformer"
    old.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != "modules.json":
            path.rename(old / path.name)
    (old / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": true}')
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rsplit(".")[-1]
    (source / "modules.json").write_text(json.dumps(modules))
    flags = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    (source / "3_Normalize" / "config.json").unlink()
    (source / "3_Normalize").rmdir()
    new = load_model(model.sentence_transformers)
    read = load_model(source)
    assert read.config.max_length == 40 and read.tokenizer_folder == old
    assert read.config.pooling == "cls"
    tokenizers = [load_tokenizer(each.tokenizer_folder) for each in (read, new)]
    assert tokenizers[0].fingerprint != tokenizers[1].fingerprint  # lower-casing is a part of it
    for format_ in ("ours", "theirs"):  # .. and stays one, there and back
        convert(ConvertConfig(source=str(source), target=str(tmp_path / format_)))
        source = tmp_path / format_
        assert load_tokenizer(load_model(source).tokenizer_folder).fingerprint == tokenizers[0].fingerprint
    source = tmp_path / "source"
    assert read.config.dense == new.config.dense
    modules.append(modules.pop(1))
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "modules.json").write_text('[{"idx": 0}]')
    with pytest.raises(ValueError, match=r"modules\.json is not a list of modules, each with type and path"):
        load_model(source)
    (source / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="lists the modules Transformer Dense Normalize Pooling; supported are"):
        load_model(source)


@pytest.mark.parametrize("name, positions", [("xlm-roberta", 62), ("bert", 64)])
def test_a_length_above_the_position_table(peer_models, tmp_path, logged, name, positions):
    """Cut to the table, in every format; a length that is asked for is taken before the model's is looked at."""
    source = tmp_path / "source"
    shutil.copytree(peer_models[name].sentence_transformers, source)
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 1024}')
    assert load_model(source, max_length=positions).config.max_length == positions and logged() == []
    assert load_model(source).config.max_length == read_config_only(source)[0].max_length == positions
    cut = f"is above the position table: texts are cut at its {positions} tokens"
    assert logged() == [f"{source}: max_seq_length=1024 {cut}"] * 2
    convert(ConvertConfig(str(source), str(tmp_path / "ours")))
    assert load_model(tmp_path / "ours", max_length=9).config.max_length == 9
    logged()
    assert load_model(tmp_path / "ours", max_length=99).config.max_length == positions
    assert logged() == [f"{tmp_path / 'ours' / 'allpairs.json'}: max_length=99 {cut}"]
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    with pytest.raises(ValueError, match="source: max_seq_length=long is not a number"):
        load_model(source)


def test_targets_that_cannot_be_written(peer_models, tmp_path, run_main):
    source = peer_models["bert"].transformers
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ValueError, match="full is not empty"):
        convert(ConvertConfig(str(source), str(tmp_path / "full")))
    with pytest.raises(ValueError, match="file is a file"):
        convert(ConvertConfig(str(source), str(tmp_path / "full" / "file")))
    done = run_main("convert", f"--source={source}", f"--target={tmp_path / 'full' / 'file' / 'new'}", check=False)
    assert done.returncode == 1 and "full/file" in done.stderr.splitlines()[-1]
    (tmp_path / "empty").mkdir()
    run_main("convert", f"--source={source}", f"--target={tmp_path / 'empty'}")
    assert (tmp_path / "empty" / "allpairs.json").exists()


def test_a_full_disk(peer_models, tmp_path, run_main):
    """No file may be longer than 20 kB: the weights do not fit, and nothing is left behind."""
    source = peer_models["bert"].transformers
    done = run_main(
        "convert", f"--source={source}", f"--target={tmp_path / 'new'}", check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1 and "parameters.safetensors could not be written" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
