"""The real all-MiniLM-L6-v2 scores on STS-B what sentence-transformers gives it."""

import json

import pytest

PEER_SCORE = """
import csv, scipy.stats
from sentence_transformers import SentenceTransformer
rows = list(csv.DictReader(open(arguments["file"], encoding="utf-8", newline="\\n"), delimiter="\\t", quoting=csv.QUOTE_NONE))
rows = [row for row in rows if row["split"] == "test"]
model = SentenceTransformer(arguments["model"], device="cpu")
first, second = (model.encode([row[name] for row in rows], normalize_embeddings=True) for name in ("sentence1", "sentence2"))
result = float(100 * scipy.stats.spearmanr((first * second).sum(1), [float(row["score"]) for row in rows]).statistic)
"""  # noqa: E501


@pytest.mark.peer
def test_stsb_test_score_equals_the_peers(minilm, shared_data, peer, run_main, tmp_path):
    output = tmp_path / "results.json"
    run_main("evaluate", f"--model={minilm}", "--suite=stsb", f"--data_dir={shared_data}", f"--output={output}")
    [value] = [line["value"] for line in json.loads(output.read_text()) if line["metric"] == "cosine_spearman"]
    expected = peer(PEER_SCORE, model=str(minilm), file=str(shared_data / "eval" / "stsb.tsv"))
    assert value == pytest.approx(expected, abs=0.01)
    assert value == pytest.approx(82.03, abs=0.01)  # as published
