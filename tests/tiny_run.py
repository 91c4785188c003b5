"""A small data set, prepared once, and the flags of a small run on it."""

import gzip
import json
import random

import pytest

WORDS = ("red", "green", "blue", "small", "large", "old", "new", "fast", "slow", "cat", "dog", "bird", "fish",
         "tree", "house", "river", "stone", "road", "king", "queen")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory, run_main):
    """DATA_DIR with 300 pairs and 100 triplets, and the files they came from beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)

    def sentence():
        return " ".join(rng.choices(WORDS, k=rng.randint(3, 15)))

    source = folder / "source"
    source.mkdir()
    for name, count, texts in (("pairs", 300, 2), ("triplets", 100, 3)):
        with gzip.open(source / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps([sentence() for _ in range(texts)]) + "\n" for _ in range(count))
    run_main("prepare", f"--source_dir={source}", "--tokenizer=data/sample/model", f"--data_dir={folder / 'data'}")
    return folder / "data"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Architecture and tokenizer of a BERT with two layers of 32, for --random_init."""
    folder = tmp_path_factory.mktemp("model")
    from tests.conftest import REPOSITORY

    source = REPOSITORY / "data" / "sample" / "model"
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny_flags(tiny_data, tiny_model):
    return [
        f"--data_dir={tiny_data}", f"--init={tiny_model}", "--random_init", "--global_batch_size=16",
        "--packing_blocks=2", "--max_length=32", "--encode_length=32", "--num_steps=60", "--warmup_steps=3",
        "--learning_rate=1e-3", "--checkpoint_every=5", "--log_every=1", "--row_length=64",
    ]
