"""A run on data with prompts: scored with them, exported with them; a teacher reads the texts alone."""

import json
import shutil

import numpy as np
import pytest

from data.examples import Prompts
from evaluation.tasks.heldout import evaluate_pairs, read_pairs
from inference.encoder import Encoder

PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.fixture(scope="module")
def prompted_flags(tiny_data, tiny_flags, run_main, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prompted") / "data"
    run_main("prepare", f"--source_dir={tiny_data.parent / 'source'}", "--tokenizer=data/sample/model",
             f"--data_dir={data_dir}", *(f"--{name}_prompt={prompt}" for name, prompt in PROMPTS.items()))
    return [*tiny_flags, "--num_steps=1", "--warmup_steps=0", f"--data_dir={data_dir}"]


@pytest.fixture(scope="module")
def workdir(prompted_flags, run_main, tmp_path_factory):
    """Of a run of one step."""
    workdir = tmp_path_factory.mktemp("run")
    pairs = workdir / "pairs.jsonl"
    pairs.write_text("".join(json.dumps([f"{a} cat", f"{b} dog"]) + "\n" for a, b in zip("abcdefgh", "hgfedcba")))
    run_main("train", *prompted_flags, f"--eval_pairs={pairs}", f"--workdir={workdir}")
    return workdir


def test_scored_and_exported_with_them(workdir, run_main):
    settings = json.loads((workdir / "export" / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == PROMPTS
    encoder, pairs = Encoder.load(workdir / "export"), read_pairs(workdir / "pairs.jsonl")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    best = max((line for line in lines if "heldout_mrr@10" in line), key=lambda line: line["heldout_mrr@10"])
    expected = evaluate_pairs(encoder.encode, pairs, Prompts(**PROMPTS))
    ranks = np.load(workdir / "evaluations" / f"step-{best['step']:07d}.npz")["heldout_ranks"]
    np.testing.assert_array_equal(ranks, expected.ranks)
    run_main("evaluate", f"--model={workdir}", f"--pairs={workdir / 'pairs.jsonl'}",
             f"--output={workdir / 'results.json'}")
    values = {line["metric"]: line["value"] for line in json.loads((workdir / "results.json").read_text())}
    assert values["mrr@10"] == pytest.approx(best["heldout_mrr@10"], rel=1e-6) == 100 * expected.mrr_at_10


def test_data_without_them_is_another_run_and_takes_none_from_init(workdir, tiny_flags, run_main, tmp_path):
    done = run_main("train", *tiny_flags, "--num_steps=1", "--warmup_steps=0", f"--workdir={workdir}", check=False)
    assert done.returncode == 1 and f"prompts: the checkpoint has {[list(x) for x in PROMPTS.items()]}" in done.stderr
    init = shutil.copytree(workdir / "export", tmp_path / "init")
    of_init = json.loads((init / "config_sentence_transformers.json").read_text()) | {"default_prompt_name": "query"}
    (init / "config_sentence_transformers.json").write_text(json.dumps(of_init))
    run_main("train", *tiny_flags, "--num_steps=1", "--warmup_steps=0", f"--init={init}",
             "--norandom_init", f"--workdir={tmp_path / 'run'}")
    settings = json.loads((tmp_path / "run" / "export" / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {} and settings["default_prompt_name"] is None


def test_a_teacher_reads_the_texts_alone(workdir, prompted_flags, tiny_data, run_main, tmp_path):
    teacher, data_dir = workdir / "export", prompted_flags[-1]
    distill = ("distill", *prompted_flags, "--hard_negatives=false", f"--teacher={teacher}", f"--workdir={tmp_path}")
    done = run_main(*distill, check=False)
    assert done.returncode == 1
    assert "because the data has the prompts {'query': 'query: '" in done.stderr.splitlines()[-1]
    run_main("teach", f"--teacher={teacher}", f"--source_dir={tiny_data.parent / 'source'}", f"{data_dir}")
    run_main(*distill)
