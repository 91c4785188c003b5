"""The recipes are lists of flags that exist, with the published values (SYSTEMS.md section 1)."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PARSE = """
import dataclasses, json, sys
from absl import flags
from flags import config_from_flags, define_flags
from training.config import TrainConfig
define_flags(TrainConfig)
flags.FLAGS(["main.py", "--flagfile=" + sys.argv[1], "--data_dir=d", "--workdir=w"])
print(json.dumps(dataclasses.asdict(config_from_flags(TrainConfig))))
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
    "quickstart": {"init": "data/sample/model", "random_init": True},
}


def test_every_recipe_is_tested():
    assert {path.stem for path in (REPOSITORY / "recipes").glob("*.flags")} == set(EXPECTED)


@pytest.mark.parametrize("recipe", EXPECTED)
def test_recipe(recipe):
    path = REPOSITORY / "recipes" / f"{recipe}.flags"
    done = subprocess.run([sys.executable, "-c", PARSE, str(path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads(done.stdout)
    assert {name: config[name] for name in EXPECTED[recipe]} == EXPECTED[recipe]
