"""Two processes, of two devices each, score what one scores."""

import dataclasses
import json
import random

import jax
import pytest

from model.files.weights import read_config_only, save_model
from model.parameters import declare, initialize
from tests.conftest import REPOSITORY

WORDS = ["red", "green", "blue", "small", "large", "cat", "dog", "bird", "fish", "tree", "house", "river", "stone"]


@pytest.fixture
def model(tmp_path):
    """A random encoder of one small layer, with the bundled tokenizer."""
    model, tokenizer_folder = read_config_only(REPOSITORY / "data" / "sample" / "model")
    encoder = dataclasses.replace(model.encoder, num_layers=1, hidden_size=32, num_heads=2, intermediate_size=64)
    model = dataclasses.replace(model, encoder=encoder)
    save_model(tmp_path / "model", model, jax.device_get(initialize(declare(model), jax.random.key(0))),
               tokenizer_folder)
    return tmp_path / "model"


def test_two_processes_score_what_one_scores(model, tmp_path, run_processes):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(90)]
    pairs = list(zip(texts[::2], texts[1::2]))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "parallel.tsv").write_text("en\tde\n" + "".join("\t".join(pair) + "\n" for pair in pairs))
    rows = "".join(f"{a}\t{b}\t{rng.randint(0, 5)}\ttest\n" for a, b in pairs)
    (tmp_path / "stsb.tsv").write_text("sentence1\tsentence2\tscore\tsplit\n" + rows)
    beir = tmp_path / "small_beir"
    (beir / "qrels").mkdir(parents=True)
    queries, documents = ({f"{kind}{i}": pair[side] for i, pair in enumerate(pairs)} for side, kind in enumerate("qd"))
    for name, texts_of in (("corpus", documents), ("queries", queries)):
        (beir / f"{name}.jsonl").write_text("".join(
            json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in texts_of.items()))
    (beir / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t1\n" for q, d in zip(queries, documents)))
    (tmp_path / "ranked.jsonl").write_text("".join(
        json.dumps({"query": a, "positive": [b], "negative": [c for _, c in rng.sample(pairs, 5) if c != b]}) + "\n"
        for a, b in pairs))
    flags = ["evaluate", f"--retrieval={beir}", f"--reranking={tmp_path / 'ranked.jsonl'}",
             f"--model={model}", "--suite=stsb", f"--data_dir={tmp_path}",
             f"--pairs={tmp_path / 'pairs.jsonl'}", f"--parallel={tmp_path / 'parallel.tsv'}"]
    tables, results = {}, {}
    for processes in (1, 2):
        output = tmp_path / f"results-{processes}.json"
        tables[processes] = run_processes(*flags, f"--output={output}", processes=processes, devices=2)
        results[processes] = [(line["task"], line["metric"], line["n"], pytest.approx(line["value"], abs=1e-3))
                              for line in json.loads(output.read_text())]
    assert {task for task, *_ in results[1]} >= {"stsb", "small_beir", "ranked", "pairs", "parallel:de"}
    assert results[2] == results[1]
    assert ["cosine_spearman" in table for table in tables[2]] == [True, False]  # process 0 alone prints
