"""The recipes are lists of flags that exist, with the published values (recipes/README.md)."""

import json
import sys

import pytest

from tests.conftest import REPOSITORY

PARSE = """
import json, sys
from flags import define_flags, parse_flags, values_of
from training.settings import DistillConfig, TrainConfig
config_type = {"train": TrainConfig, "distill": DistillConfig}[sys.argv[2]]
define_flags(config_type)
arguments = ["main.py", "--init=student", "--teacher=teacher", "--flagfile=" + sys.argv[1], "--data_dir=d",
             "--workdir=w"]
print(json.dumps(values_of(parse_flags(config_type, arguments)[0])))
"""
PUBLISHED = {
    "global_batch_size": 1024, "max_length": 128, "learning_rate": 2e-5, "warmup_steps": 500, "schedule": "linear",
    "clip_norm": 1.0, "scale": 20.0, "pooling": "mean", "normalize": True, "packing_blocks": 8, "symmetric": "auto",
}
EXPECTED = {
    "all-minilm-l6-v2": PUBLISHED | {
        "init": "nreimers/MiniLM-L6-H384-uncased", "num_steps": 100_000, "encode_length": 256},
    "all_datasets_v3_roberta-large": PUBLISHED | {
        "init": "roberta-large", "num_steps": 540_000, "encode_length": 128},
    "general": PUBLISHED | {"init": "FacebookAI/roberta-base", "encode_length": 128, "hard_negatives": True},
    "semantic-search": PUBLISHED | {
        "init": "nreimers/MiniLM-L6-H384-uncased", "max_length": 256, "encode_length": 512, "symmetric": "never",
        "hard_negatives": True},
    "conversational": PUBLISHED | {
        "init": "distilbert/distilroberta-base", "max_length": 256, "encode_length": 256, "symmetric": "always"},
    "quickstart": {"init": "data/sample/model", "random_init": True},
}
SCT = {"global_batch_size": 128, "max_length": 128, "num_epochs": 20.0, "warmup_share": 0.1, "adam_epsilon": 1e-6,
       "adam_bias_correction": False, "weight_decay": 0.01, "clip_norm": 1.0, "eval_every": 64,
       "patience_epochs": 7.0, "pooling": "mean", "kl_weight": 1.0, "num_queues": "2"}
SCT_ROWS = {  # recipes/README.md: tau_ref, tau, queue, learning rate
    "self": {"tiny": (.03, .04, 131072, 5e-4), "mini": (.01, .03, 131072, 3e-4), "small": (.02, .03, 65536, 3e-4),
             "base": (.04, .05, 65536, 5e-4), "large": (.04, .05, 16384, 5e-4)},
    "distill": {"tiny": (.03, .04, 131072, 5e-4), "mini": (.04, .05, 65536, 1e-4), "small": (.04, .05, 131072, 1e-4),
                "base": (.04, .05, 65536, 1e-4)},
}
for kind, rows in SCT_ROWS.items():
    for size, row in rows.items():
        names = ("reference_temperature", "temperature", "queue_size", "learning_rate")
        EXPECTED[f"sct-{kind}-bert-{size}"] = SCT | dict(zip(names, row)) | {
            "objective": "sct" if kind == "self" else "cd"}
HPD = {"objective": "mse", "teacher_pca": 128, "dense": 128, "pca_sample": 40_000, "learning_rate": 1e-4,
       "global_batch_size": 256, "num_epochs": 5.0, "warmup_steps": 1000, "select": "teacher_mse", "views": "single"}
DISTILLED = {
    "hpd-tinybert": HPD | {"init": "huawei-noah/TinyBERT_General_4L_312D"},
    "hpd-minilm": HPD | {"init": "nreimers/MiniLM-L6-H384-uncased"},
    "multilingual-xlm-roberta": {
        "objective": "mse", "num_epochs": 5.0, "global_batch_size": 64, "max_length": 128, "learning_rate": 2e-5,
        "adam_epsilon": 1e-6, "warmup_steps": 10_000, "normalize_teacher": False, "normalize": False},
}
EXPECTED |= DISTILLED
SHARED = {"sct", "sct-distill", "hpd"}  # flags that several recipes take in


def test_every_recipe_is_tested():
    assert {path.stem for path in (REPOSITORY / "recipes").glob("*.flags")} == set(EXPECTED) | SHARED


@pytest.mark.parametrize("recipe", EXPECTED)
def test_recipe(recipe, processes):
    path = REPOSITORY / "recipes" / f"{recipe}.flags"
    command = "distill" if recipe in DISTILLED or recipe.startswith("sct-distill") else "train"
    arguments = [sys.executable, "-c", PARSE, str(path), command]
    done = processes.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads(done.stdout)
    assert {name: config[name] for name in EXPECTED[recipe]} == EXPECTED[recipe]
