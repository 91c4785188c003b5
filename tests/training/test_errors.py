"""Settings and data that do not fit: each a message that says what, and nothing written is lost."""

import importlib
import json
import os

import numpy as np
import pytest
from absl import flags as absl_flags

from flags import define_flags
from training.loop import train
from training.settings import ModelSettings
from training.starting_point import starting_model
from training.sweep import read_flags


@pytest.mark.parametrize("flags, devices, message", [
    (["--packing_blocks=3"], 1, "global_batch_size=16 is not divisible by packing_blocks=3"),
    (["--packing_blocks=2"], 4, "packing_blocks=2 is not divisible by the number of devices=4"),
    (["--packing_blocks=4", "--encode_blocks=3"], 2, "packing blocks per device=2 is not divisible by encode_blocks=3"),
    (["--packing_blocks=4", "--shard_state=optimizer", "--shard_devices=3"], 4,
     "the number of devices=4 is not divisible by shard_devices=3"),
    (["--attention=tpu"], 1, "implementation='tpu' cannot run on 'cpu'"),
    (["--init=nowhere/at/all"], 1, "nowhere/at/all"),
    (["--data_dir=nowhere"], 1, "nowhere"),
    (["--eval_sts=nowhere.tsv"], 1, "nowhere.tsv"),
])
def test_settings_that_do_not_fit(run_main, tiny_flags, tmp_path, flags, devices, message):
    done = run_main("train", *tiny_flags, *flags, f"--workdir={tmp_path}", devices=devices, check=False)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1], done.stderr[-2000:]


@pytest.mark.parametrize("flags, message", [
    (["--warmup_steps=70"], "warmup_steps=70 leaves nothing of num_steps=60 to decay over: give a smaller --warmup_"),
    (["--views=single"], "--views=single gives one text per example, --objective=contrastive compares two"),
    (["--objective=mse"], "--objective=mse learns from a teacher: give --teacher=MODEL"),
    (["--objective=mse", "--teacher=nowhere"], "--objective=mse takes no hard negatives, and triplets.jsonl.gz in "),
    (["--objective=sct"], "--objective=sct takes no hard negatives, and triplets.jsonl.gz in "),
    (["--profile_steps=5,2"], "--profile_steps=5,2: the first step is after the last"),
    (["--batch_size=64"], "there is no flag --batch_size: did you mean --global_batch_size?"),
    (["--clip_norm=-1"], "flag --clip_norm=-1: it must be at least 0"),
    (["--learning_rate=-1"], "flag --learning_rate=-1: it must be above 0"),
    (["--learning_rate=nan"], "flag --learning_rate=nan: it must be above 0"),
    (["--scale=0"], "flag --scale=0: it must be above 0"),
    (["--adam_b1=1.5"], "flag --adam_b1=1.5: it must be at least 0 and below 1"),
    (["--warmup_steps=-5"], "flag --warmup_steps=-5: it must be at least 0"),
    (["--keep_checkpoints=0"], "flag --keep_checkpoints=0: it must be at least 1"),
    (["--loader_threads=0"], "flag --loader_threads=0: it must be at least 1"),
    (["--prefetch=0"], "flag --prefetch=0: it must be at least 1"),
    (["--dense=-3"], "flag --dense=-3: it must be at least 0"),
    (["--encode_length=0"], "flag --encode_length=0: it must be at least 3"),
    (["--max_length=600", "--row_length=600"], "--max_length=600: the position table of"),
    (["--keep_layers=0,-1"], "flag --keep_layers=0,-1: it must be at least 0"),
    (["--profile_steps=2"], "flag --profile_steps=2: it takes 2 comma-separated values"),
    (["--log_every=-1"], "flag --log_every=-1: it must be at least 0"),
])
def test_usage_errors_make_nothing(tiny_flags, tmp_path, flags, message):
    """Before anything is loaded or made."""
    with pytest.raises(absl_flags.Error) as refused:
        train(read_flags("train", [*tiny_flags, *flags, f"--workdir={tmp_path / 'run'}"]))
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_usage_error_has_status_2(run_main, tiny_flags, tmp_path):
    done = run_main("train", *tiny_flags, "--warmup_steps=70", f"--workdir={tmp_path / 'run'}", check=False)
    assert done.returncode == 2 and "warmup_steps=70 leaves nothing" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_encode_length_is_cut_to_the_position_table(tiny_model, logged):
    model, _ = starting_model(ModelSettings(init=str(tiny_model), random_init=True, encode_length=600), {})
    assert model.max_length == model.encoder.max_positions == 512
    assert logged() == ["--encode_length=600 is above the position table: texts are cut at its 512 tokens"]


def test_every_number_has_a_range():
    """define_flags raises TypeError for one without."""
    import main

    for module, config, _ in main.COMMANDS.values():
        define_flags(getattr(importlib.import_module(module), config), absl_flags.FlagValues())


def test_what_fails_after_loading_leaves_no_workdir(run_main, tiny_flags, tmp_path):
    done = run_main("train", *tiny_flags, "--init=nowhere/at/all", f"--workdir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1 and not (tmp_path / "run").exists()


def test_unknown_command_and_flag(run_main):
    assert run_main("tarin", check=False).returncode == 2
    done = run_main("train", "--data_dir=a", "--workdir=b", "--init=c", "--learning_rat=1", check=False)
    assert done.returncode == 2
    assert "learning_rat" in done.stderr
    done = run_main("train", "--data_dir=a", check=False)
    assert done.returncode == 2
    assert "workdir" in done.stderr


def test_help_names_every_flag(run_main):
    from flags import settings_of
    from training.settings import TrainConfig

    text = run_main("train", "--help", check=False).stdout
    missing = [name for name in (setting.name for setting in settings_of(TrainConfig)) if name not in text]
    assert not missing


def test_nonfinite_loss_stops_and_saves_the_batch(run_main, tiny_flags, tmp_path):
    done = run_main("train", *tiny_flags, "--learning_rate=1e30", "--warmup_steps=0", f"--workdir={tmp_path}",
                    check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "pairs.jsonl.gz" in last and "nonfinite-step-" in last, done.stderr[-2000:]
    saved = np.load(next(tmp_path.glob("nonfinite-step-*.npz")))
    step = int(next(tmp_path.glob("nonfinite-step-*.npz")).name.split("-")[2])
    assert f"step {step}: " in last
    assert saved["tokens"].shape[-1] == 64
    assert sum(count for _, count in json.loads(str(saved["datasets"]))) == 16
    assert not list((tmp_path / "checkpoints").glob(f"{step}")), "a step that went wrong is not saved"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_unwritable_workdir(run_main, tiny_flags, tmp_path):
    tmp_path.chmod(0o500)
    done = run_main("train", *tiny_flags, f"--workdir={tmp_path}/run", check=False)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr.splitlines()[-1]


def test_workdir_that_is_a_file(run_main, tiny_flags, tmp_path):
    (tmp_path / "run").write_text("")
    done = run_main("train", *tiny_flags, f"--workdir={tmp_path}/run", check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/run" in done.stderr.splitlines()[-1]
