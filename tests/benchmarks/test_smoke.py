"""Each benchmark runs against the real peer, at the smallest sizes, with a random encoder of two layers."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import quality_vs_sentence_transformers as quality
from benchmarks.machine import has_bfloat16
from benchmarks.texts import SPEED_FILES
from inference.encoder import Encoder

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def init(minilm, tmp_path_factory):
    """The real tokenizer with a configuration of two small layers, without weights."""
    folder = tmp_path_factory.mktemp("init")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm / name, folder)
    config = json.loads((minilm / "config.json").read_text())
    config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def start(init, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "model"
    quality.write_random_start(quality.QualityBenchmarkConfig(data_dir="", dropout=0.1, seed=3), str(init), folder)
    return folder


@pytest.fixture(scope="module")
def texts():
    generator = np.random.default_rng(0)
    words = ["river", "stone", "green", "walk", "seven", "music", "paper", "cloud", "open", "train"]
    return [" ".join(generator.choice(words, generator.integers(3, 30))) for _ in range(256)]


@pytest.fixture(scope="module")
def data_dir(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "train").mkdir()
    for name in SPEED_FILES:
        with gzip.open(folder / "train" / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps([f"{name} {a}", b]) + "\n" for a, b in zip(texts[::2], texts[1::2]))
    return folder


@pytest.fixture
def run_benchmark(peer, data_dir, start):
    """Runs a benchmark as a user does; returns (printed lines, the JSON object of the last)."""

    def run(name, *flags):
        python = os.environ.get("ALLPAIRS_PEER_PYTHON", str(REPOSITORY / ".venv-peer" / "bin" / "python"))
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", f"--data_dir={data_dir}", f"--model={start}", "--threads=1",
             f"--peer_python={python}", *flags], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        lines = done.stdout.splitlines()
        return lines, json.loads(lines[-1])

    return run


def test_encode(run_benchmark):
    lines, result = run_benchmark(
        "encode_vs_sentence_transformers", "--texts=64", "--repeats=1", "--batch_sizes=16,32")
    assert result["name"] == "encode_vs_sentence_transformers" and result["target"] == 1.0
    assert 0 < result["ratio"] <= result["ratio_to_default"] and result["peer_batch_size"] in (16, 32)
    assert result["largest_difference"] < 1e-5
    assert 0 < result["product_share"] < 1 and result["product_share_target"] == 0.8
    assert result["met"] == (result["ratio"] >= 1 and result["product_share"] >= 0.8)
    assert any("sentence_transformers 6" in line for line in lines)


def test_evaluate(run_benchmark, data_dir, texts):
    (data_dir / "eval").mkdir()
    rows = [f"{a}\t{b}\t{index % 6}\ttest\n" for index, (a, b) in enumerate(zip(texts[:40], texts[40:80]))]
    (data_dir / "eval" / "stsb.tsv").write_text("sentence1\tsentence2\tscore\tsplit\n" + "".join(rows))
    lines, result = run_benchmark("evaluate_vs_sentence_transformers", "--repeats=1", "--tasks=stsb,sts14")
    assert result["name"] == "evaluate_vs_sentence_transformers" and result["ratio"] > 0
    assert result["tasks"] == ["stsb"] and result["missing"] == ["sts14"] and result["largest_difference"] < 0.01
    assert any("without sts14, whose files are not there" in line for line in lines)


def test_train(run_benchmark):
    lines, result = run_benchmark(
        "train_vs_sentence_transformers", "--pairs=256", "--batch_size=8", "--max_length=32", "--seconds=0.5",
        "--warmup_seconds=0.5", "--repeats=1")
    assert result["name"] == "train_vs_sentence_transformers" and result["ratio"] > 0
    names = {"ours float32", "peer float32"} | ({"ours bfloat16", "peer bf16 autocast"} if has_bfloat16() else set())
    assert set(result["pairs_per_second"]) == set(result["product_shares"]) == names
    assert len(result["left_out"]) == 4 - len(names) and (result["bfloat16_ratio"] is None) == (len(names) == 2)
    assert 0 < result["product_shares"]["ours float32"] < 1
    real_tokens = {line[:18].strip(): float(line.split("pairs/s")[1].split()[0])
                   for line in lines if "real tokens per pair," in line}
    assert real_tokens["ours float32"] == pytest.approx(real_tokens["peer float32"], rel=0.5)  # the same sort of pairs


def test_grad_cache(run_benchmark):
    lines, result = run_benchmark(
        "grad_cache", "--pairs=256", "--batch_size=8", "--packing_blocks=2", "--max_length=32", "--seconds=0.5",
        "--warmup_seconds=0.5", "--repeats=1")
    assert result["name"] == "grad_cache" and result["ratio"] > 0 and result["peer_ratio"] > 0
    assert result["met"] == (result["ratio"] <= 1.4)
    assert {line[:14].strip() for line in lines if "of the product rate" in line} == {
        "ours whole", "ours in parts", "peer whole", "peer in parts"}


def test_the_peer_starts_from_our_random_weights_and_stops_at_the_deadline(peer, start, texts, tmp_path):
    config = quality.QualityBenchmarkConfig(data_dir="", minutes=0.01, batch_size=8, max_length=16, threads=1)
    python = os.environ.get("ALLPAIRS_PEER_PYTHON", str(REPOSITORY / ".venv-peer" / "bin" / "python"))
    first = peer("from sentence_transformers import SentenceTransformer\n"
                 "model = SentenceTransformer(arguments['model'], device='cpu')\n"
                 "result = model.encode(arguments['texts']).tolist()", model=str(start), texts=texts[:20])
    np.testing.assert_allclose(Encoder.load(start).encode(texts[:20]), first, atol=1e-5)
    pairs = list(zip(texts[::2], texts[1::2]))
    shutil.copytree(start, tmp_path / "start")
    begin = time.time()
    answer = quality.train_peer(
        config, python, {"a": pairs[:64], "b": pairs[64:]}, tmp_path / "start", "float32", tmp_path / "out")
    assert answer["pairs"] == 8  # the deadline had passed after the first step
    assert answer["seconds"] <= time.time() - begin
    assert Encoder.load(tmp_path / "out").encode(texts[:2]).shape == (2, 32)


def test_steps_in_which_a_shape_compiled_are_no_steady_steps(tmp_path):
    rates = [1.0, 1.0, 100.0, 100.0, 1.0, 50.0]  # pairs a second; a compiling step is slow
    lines = [{"step": step, "pairs_per_second": rate} for step, rate in enumerate(rates)] + [{"step": 6, "sts": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = quality.QualityBenchmarkConfig(data_dir="", batch_size=10)
    assert quality.steady_steps_per_second(tmp_path, config) == pytest.approx(2 / (0.1 + 0.2))
