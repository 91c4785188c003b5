"""`main.py teach` with a tiny random BERT that has a tokenizer of its own, from source files to loader targets."""

import dataclasses
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import inference.teach
from data.prepare import PrepareConfig, prepare
from data.shards import open_dataset, text_id
from data.teacher_store import find_teacher, gather_embeddings, open_embeddings, store_folder
from data.tokenizer import load_tokenizer
from inference.encoder import Encoder
from inference.teach import TeachConfig, teach
from model.config import DenseConfig
from model.files.weights import load_model, model_fingerprint, read_config_only, save_model
from model.parameters import declare, initialize
from tests.conftest import REPOSITORY, with_devices
from tests.data.test_loader import batches_of, loader_config, text_slots, write_tokenizer
from tests.tiny_run import WORDS

FILES = ("pairs.jsonl.gz", "triplets.jsonl.gz")
TOKENIZER = str(REPOSITORY / "data" / "sample" / "model")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_model):
    """A model of width 24 with a head, the vocabulary of the data's words and a Normalize module."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer_folder = write_tokenizer(folder / "tokenizer", WORDS[::-1])
    model, _ = read_config_only(tiny_model)
    encoder = dataclasses.replace(model.encoder, vocab_size=len(WORDS) + 4)
    model = dataclasses.replace(
        model, encoder=encoder, dense=(DenseConfig(32, 24, True, "tanh"),), normalize=True, max_length=16
    )
    save_model(folder / "model", model, initialize(declare(model), jax.random.key(5)), tokenizer_folder)
    return folder / "model"


@pytest.fixture
def prepared(tiny_data, tmp_path):
    """(source, a data folder of its own) of the tiny data set; a shard has 120 examples."""
    source, out = tiny_data.parent / "source", tmp_path / "data"
    prepare(PrepareConfig(str(source), TOKENIZER, str(out), workers=1, records_per_shard=120))
    return source, out


def config_of(prepared, teacher, **options):
    return TeachConfig(str(teacher), *map(str, prepared), **options)


def fingerprint_of(folder) -> str:
    model, parameters, tokenizer_folder, _ = load_model(folder)
    return model_fingerprint(model, parameters, load_tokenizer(tokenizer_folder))


def source_texts(source) -> dict[int, str]:
    lines = [line for name in FILES for line in gzip.decompress((source / name).read_bytes()).splitlines()]
    return {text_id(text): text for line in lines for text in json.loads(line)}


@pytest.mark.parametrize("texts, dtype, tolerance", [("all", "float32", 1e-5), ("first", "float16", 2e-3)])
def test_targets_are_the_teacher_s_embeddings(prepared, teacher, texts, dtype, tolerance, capsys):
    source, out = prepared
    teach(config_of(prepared, teacher, texts=texts, dtype=dtype))
    fingerprint = fingerprint_of(teacher)
    assert f"teacher {fingerprint}: {texts} texts, width 24, {dtype}" in capsys.readouterr().out.splitlines()[-1]
    found = find_teacher(out, FILES, fingerprint)
    assert (found.width, found.texts, found.dtype, found.normalize) == (24, texts, dtype, True)
    by_id, encoder = source_texts(source), Encoder.load(teacher)
    settings = loader_config(str(out), teacher=fingerprint, global_batch_size=64, packing_blocks=4, max_length=32)
    norms = []
    for batch in batches_of(settings, range(4)):
        slots = 16 * (batch.texts_per_example if texts == "all" else 1)
        assert batch.targets.shape == (4, slots, 24)
        ids = np.array([[identifier for identifier, _ in block[:slots]] for block in text_slots(batch)], np.uint64)
        expected = encoder.encode([by_id[identifier] for identifier in ids[ids > 0].tolist()], normalize=False)
        np.testing.assert_allclose(batch.targets[ids > 0], expected, atol=tolerance)
        assert not batch.targets[ids == 0].any()
        norms.extend(np.linalg.norm(expected, axis=1))
    assert np.abs(np.array(norms) - 1).min() > 0.01, "embeddings are not normalised"


def test_windows_do_not_matter(prepared, teacher, monkeypatch):
    _, out = prepared
    fingerprint, read = fingerprint_of(teacher), []
    for window in (inference.teach.WINDOW_TEXTS, 37):
        monkeypatch.setattr(inference.teach, "WINDOW_TEXTS", window)
        teach(config_of(prepared, teacher))
        records = open_embeddings(out, FILES[1], fingerprint).read_records(range(100))
        examples, places = np.divmod(np.arange(300), 3)
        read.append(gather_embeddings(records, examples, places, find_teacher(out, FILES[1:], fingerprint)))
        shutil.rmtree(store_folder(out, FILES[1], fingerprint))
    assert np.array_equal(read[0][0], read[1][0]) and (read[0][0] > 0).all()
    np.testing.assert_allclose(read[0][1], read[1][1], atol=1e-5)


def folder_times(out) -> dict[str, int]:
    return {path.parent.parent.name: path.stat().st_ino for path in out.glob("*/teacher-*/teacher.json")}


def test_only_what_is_not_finished_is_embedded(prepared, teacher, monkeypatch, capsys):
    """A failure in the second dataset leaves the first; a half-written folder is written again; so are other flags."""
    source, out = prepared
    real, calls = Encoder.encode, []

    def fail_at_second(self, texts, **options):
        calls.append(len(texts))
        if len(calls) == 2:
            raise OSError("the machine went away")
        return real(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", fail_at_second)
    with pytest.raises(OSError, match="went away"):
        teach(config_of(prepared, teacher))
    first = folder_times(out)
    assert set(first) == {FILES[0]} and len(list(out.glob("*/*.partial"))) == 1
    partial = next(out.glob("*/*.partial"))
    (partial / "00000").write_bytes(b"half a shard")
    teach(config_of(prepared, teacher))
    second = folder_times(out)
    assert set(second) == set(FILES) and second[FILES[0]] == first[FILES[0]] and not list(out.glob("*/*.partial"))
    assert calls == [600, 300, 300]
    teach(config_of(prepared, teacher))
    assert folder_times(out) == second and len(calls) == 3
    assert "(2 were finished)" in capsys.readouterr().out
    prepare(PrepareConfig(str(source), TOKENIZER, str(out), workers=1, records_per_shard=120))
    assert folder_times(out) == second, "prepare leaves a finished dataset's embeddings alone"
    teach(config_of(prepared, teacher, dtype="float16"))
    assert len(calls) == 5 and find_teacher(out, FILES, fingerprint_of(teacher)).dtype == "float16"
    (out / "one.json").write_text(json.dumps([{"name": FILES[1], "weight": 1}]))
    teach(config_of(prepared, teacher, texts="first", data_config=str(out / "one.json")))
    assert calls[5:] == [100]


def test_a_changed_source_must_be_prepared_and_embedded_again(tiny_data, tmp_path, teacher):
    source, out = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    for name in FILES:
        (source / name).write_bytes((tiny_data.parent / "source" / name).read_bytes())
    settings = PrepareConfig(str(source), TOKENIZER, str(out), workers=1)
    prepare(settings)
    teach(config_of((source, out), teacher))
    fingerprint = fingerprint_of(teacher)
    lines = gzip.decompress((source / FILES[1]).read_bytes()).splitlines(keepends=True)
    (source / FILES[1]).write_bytes(gzip.compress(b"".join(lines[::-1])))
    teach(config_of((source, out), teacher))  # nothing is to be done, so nothing is read
    with pytest.raises(ValueError, match=r"triplets\.jsonl\.gz has CRC-32 .* was prepared from a file of CRC-32"):
        teach(config_of((source, out), teacher, texts="first"))
    prepare(settings)
    find_teacher(out, FILES[:1], fingerprint)
    with pytest.raises(ValueError, match=r"triplets\.jsonl\.gz has no embeddings of teacher"):
        find_teacher(out, FILES, fingerprint)
    teach(config_of((source, out), teacher))
    find_teacher(out, FILES, fingerprint)


def test_the_fingerprint_is_of_all_that_decides(teacher):
    model, parameters, tokenizer_folder, _ = load_model(teacher)
    tokenizer, fingerprint = load_tokenizer(tokenizer_folder), fingerprint_of(teacher)
    assert len(fingerprint) == 16 and fingerprint == model_fingerprint(model, parameters, tokenizer)
    on_device = jax.tree.map(jax.numpy.asarray, parameters)
    assert model_fingerprint(model, on_device, tokenizer) == fingerprint
    changed = jax.tree.map(np.array, parameters)
    changed["dense_0"]["bias"][3] = np.nextafter(changed["dense_0"]["bias"][3], np.float32(1))
    others = {
        model_fingerprint(model, changed, tokenizer),
        model_fingerprint(dataclasses.replace(model, pooling="cls"), parameters, tokenizer),
        model_fingerprint(model, parameters, load_tokenizer(TOKENIZER)),
    }
    assert len(others) == 3 and fingerprint not in others
    for free in ({"normalize": False}, {"prompts": (("query", "query: "),)}):
        assert model_fingerprint(dataclasses.replace(model, **free), parameters, tokenizer) == fingerprint


def test_what_float16_does_not_hold(prepared, teacher, monkeypatch):
    real = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **options: 1e7 * real(self, texts, **options))
    with pytest.raises(ValueError, match=r"pairs\.jsonl\.gz: the teacher's embedding of '.*' is not finite in float16"):
        teach(config_of(prepared, teacher, dtype="float16"))


def test_killed_midway_then_the_same_command_completes(prepared, teacher, run_main):
    source, out = prepared
    flags = ["teach", f"--teacher={teacher}", f"--source_dir={source}", f"--data_dir={out}"]
    process = subprocess.Popen([sys.executable, "main.py", *flags], cwd=REPOSITORY, env=with_devices(1),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*/teacher-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    fingerprint = fingerprint_of(teacher)
    with pytest.raises(ValueError, match="no embeddings of teacher"):
        find_teacher(out, FILES, fingerprint)
    done = run_main(*flags)
    assert f"teacher {fingerprint}: all texts, width 24, float32" in done.stdout
    assert "teach" in done.stderr, "a progress bar"
    assert find_teacher(out, FILES, fingerprint).width == 24
    assert sum(len(open_dataset(out, name)) for name in FILES) == 400


@pytest.mark.parametrize("flags, message", [
    (["--teacher=nowhere/at/all"], "nowhere/at/all"),
    (["--data_dir=nowhere"], "nowhere does not exist. Run `python main.py prepare"),
    (["--source_dir=nowhere"], "there is no nowhere/pairs.jsonl.gz: --source_dir"),
    (["--pooling=pooler"], "pooling='pooler' needs an encoder with a pooler layer"),
])
def test_what_does_not_fit(tiny_data, teacher, run_main, flags, message):
    done = run_main("teach", f"--teacher={teacher}", f"--source_dir={tiny_data.parent / 'source'}",
                    f"--data_dir={tiny_data}", *flags, check=False)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr[-2000:]
