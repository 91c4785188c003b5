"""Distillation and SCT from the command line: stored and computed teachers, resume, early stop, errors, the export."""

import dataclasses
import itertools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from inference.encoder import Encoder
from model.files.weights import read_config_only, save_model
from model.parameters import declare, initialize
from tests.data.test_loader import write_tokenizer
from tests.tiny_run import WORDS
from tests.training.test_resume import losses, metrics, start, wait_for_step

HPD = ("--objective=mse", "--views=single", "--teacher_pca=8", "--dense=8", "--normalize=false", "--num_steps=6",
       "--pca_sample=64", "--checkpoint_every=100")
SCT = ("--objective=sct", "--views=word_dropout", "--queue_size=32", "--normalize=false", "--num_steps=30")


def save_teacher(folder, tiny_model, tokenizer_folder, vocab_size=None):
    model, _ = read_config_only(tiny_model)
    encoder = dataclasses.replace(model.encoder, vocab_size=vocab_size or model.encoder.vocab_size)
    model = dataclasses.replace(model, encoder=encoder)
    save_model(folder, model, initialize(declare(model), jax.random.key(5)), tokenizer_folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_model):
    """Of width 32, with the student's tokenizer."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "model", tiny_model, tiny_model)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    path = tmp_path_factory.mktemp("heldout") / "heldout.txt"
    path.write_text("the red cat\na small old house\ngreen river stone\nthe king is fast\n")
    return path


@pytest.fixture(scope="module")
def computed(run_main, tiny_flags, teacher, heldout, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("computed")
    run_main("distill", *tiny_flags, *HPD, f"--teacher={teacher}", f"--eval_teacher={heldout}", f"--workdir={workdir}")
    return workdir


def test_stored_embeddings_train_as_computed_ones(
    run_main, tiny_data, tiny_flags, teacher, heldout, computed, tmp_path
):
    shutil.copytree(tiny_data, tmp_path / "data")
    run_main("teach", f"--teacher={teacher}", "--texts=first", f"--source_dir={tiny_data.parent / 'source'}",
             f"--data_dir={tmp_path / 'data'}")
    done = run_main("distill", *tiny_flags, *HPD, f"--teacher={teacher}", f"--eval_teacher={heldout}",
                    f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    assert "embeddings stored beside the data" in done.stderr
    ours, theirs = ([line for line in metrics(workdir) if "mse" in line] for workdir in (tmp_path / "run", computed))
    assert len(ours) == 6
    for name in ("loss", "mse", "gradient_norm"):
        np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in theirs], rtol=1e-3)


def test_selected_by_its_error_and_exported_with_its_head(computed, heldout, peer):
    scores = [line for line in metrics(computed) if "teacher_mse" in line]
    assert [line["step"] for line in scores] == [0, 6] and scores[1]["teacher_mse"] < scores[0]["teacher_mse"]
    texts = heldout.read_text().splitlines()
    ours = Encoder.load(computed / "export").encode(texts)
    theirs = peer(
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(arguments['folder'], device='cpu')\n"
        "result = model.encode(arguments['texts']).tolist()",
        folder=str(computed / "export"), texts=texts)
    assert ours.shape == (4, 8)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_sct_resumes_with_its_queues(tiny_flags, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start([*tiny_flags, *SCT], whole)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    process = start([*tiny_flags, *SCT], parts)
    wait_for_step(process, parts, 8)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert "the same command resumes" in output
    assert len(losses(parts)) < 30
    process = start([*tiny_flags, *SCT], parts)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert losses(parts) == losses(whole)
    assert (parts / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()


def test_patience(run_main, tiny_flags, tmp_path):
    """With a learning rate of nothing no score gets better: the run stops in time, and stays stopped."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps([f"red {a}", f"blue {b}"]) + "\n" for a, b in itertools.pairwise(WORDS)))
    flags = [*tiny_flags, "--learning_rate=1e-12", f"--eval_pairs={pairs}", "--eval_every=5", "--patience_epochs=0.4",
             f"--workdir={tmp_path / 'run'}"]
    for _ in range(2):
        run_main("train", *flags)
        assert max(line["step"] for line in metrics(tmp_path / "run")) == 10  # 0.4 epochs of 400 examples, 16 a step


def test_epochs_and_shares_set_the_steps(tiny_model):
    from flags import with_values
    from training.checks import with_run_lengths
    from training.settings import TrainConfig

    config = with_run_lengths(with_values(TrainConfig(), global_batch_size=128, num_epochs=2.5, warmup_share=0.1), 1000)
    assert (config.optimizer.num_steps, config.optimizer.warmup_steps) == (20, 2)


@pytest.mark.parametrize("command, flags, message", [
    ("train", ["--objective=sct", "--queue_size=24"], "queue_size=24 is not a multiple of global_batch_size=16"),
    ("train", ["--keep_layers=0,2"], "--keep_layers=0,2: --init has the layers 0 to 1"),
    ("train", ["--patience_epochs=1"], "--patience_epochs=1.0 needs a score"),
    ("train", ["--select=sts_spearman"], "--select=sts_spearman is not measured"),
    ("distill", ["--dense=8"], "the student's embeddings have 8 numbers, their targets 32"),
    ("distill", ["--teacher_pca=33", "--dense=33"], "teacher_pca=33 is more than"),
    ("distill", ["--teacher_pca=30", "--pca_sample=20", "--dense=30"], "teacher_pca=30 is more than a sample of 20"),
    ("distill", ["--objective=cd", "--dense=8"], "give the student a head with --dense=32"),
    ("distill", ["--teacher_embeddings=stored"], "main.py teach"),
])
def test_settings_that_do_not_fit(run_main, tiny_flags, teacher, tmp_path, command, flags, message):
    flags = [f"--teacher={teacher}", *flags] if command == "distill" else flags
    done = run_main(command, *tiny_flags, "--hard_negatives=false", "--num_steps=5", *flags, f"--workdir={tmp_path}",
                    check=False)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1], done.stderr[-2000:]


def test_a_teacher_with_another_tokenizer_must_have_been_asked_before(run_main, tiny_flags, tiny_model, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer", WORDS[::-1])
    other = save_teacher(tmp_path / "model", tiny_model, tokenizer, vocab_size=len(WORDS) + 4)
    done = run_main("distill", *tiny_flags, "--hard_negatives=false", f"--teacher={other}",
                    f"--workdir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1
    assert "another tokenizer than the student: run `main.py teach" in done.stderr.splitlines()[-1]
