"""The real all-MiniLM-L6-v2 scores what is published and what sentence-transformers gives it on the same files."""

import json

import pytest

REFERENCE = {  # cosine Spearman x 100 by sentence-transformers 6.2 and scipy, and the pairs
    "test": {"sts12": (72.368, 3108), "sts13": (80.600, 1500), "sts15": (85.390, 3000), "stsb": (82.032, 1379),
             "sickr": (77.147, 4927)},
    "dev": {"stsb": (86.716, 1500), "sickr": (79.801, 500)},
}
PUBLISHED = {"sts12": 72.37, "sts13": 80.60, "sts15": 85.39, "stsb": 82.03}

PEER_SCORE = """
import csv, scipy.stats
from sentence_transformers import SentenceTransformer
rows = list(csv.DictReader(open(arguments["file"], encoding="utf-8", newline="\\n"), delimiter="\\t", quoting=csv.QUOTE_NONE))
rows = [row for row in rows if row["split"] == "test"]
model = SentenceTransformer(arguments["model"], device="cpu")
first, second = (model.encode([row[name] for row in rows], normalize_embeddings=True) for name in ("sentence1", "sentence2"))
cosines, human = (first * second).sum(1), [float(row["score"]) for row in rows]
result = [float(100 * correlation(cosines, human).statistic) for correlation in (scipy.stats.spearmanr, scipy.stats.pearsonr)]
"""  # noqa: E501


@pytest.fixture(scope="module")
def scores(minilm, shared_data, run_main, tmp_path_factory):
    """{split: {(task, metric): (value, n)}}, one run of main.py evaluate for each split."""
    folder = tmp_path_factory.mktemp("proof")
    for split, tasks in REFERENCE.items():
        run_main("evaluate", f"--model={minilm}", f"--suite={','.join(tasks)}", f"--data_dir={shared_data}",
                 f"--split={split}", f"--output={folder}/{split}.json")
    lines = {split: json.loads((folder / f"{split}.json").read_text()) for split in REFERENCE}
    return {split: {(line["task"], line["metric"]): (line["value"], line["n"]) for line in lines[split]}
            for split in REFERENCE}


def test_scores_are_the_reference_s(scores):
    for split, tasks in REFERENCE.items():
        found = {task: scores[split][task, "cosine_spearman"] for task in tasks}
        assert found == {task: (pytest.approx(value, abs=0.01), n) for task, (value, n) in tasks.items()}
    assert {task: round(scores["test"][task, "cosine_spearman"][0], 2) for task in PUBLISHED} == PUBLISHED


def test_stsb_scores_equal_the_peers(scores, minilm, shared_data, peer):
    expected = peer(PEER_SCORE, model=str(minilm), file=str(shared_data / "eval" / "stsb.tsv"))
    found = [scores["test"]["stsb", metric][0] for metric in ("cosine_spearman", "cosine_pearson")]
    assert found == pytest.approx(expected, abs=0.01)
