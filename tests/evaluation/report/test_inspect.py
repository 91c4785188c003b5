"""main.py inspect: what is printed, the page, and usage errors."""

import html
import importlib.util
import re
import sys

import pytest

from evaluation.report.inspect import InspectConfig, WhatToShow, as_text, bin_names, inspect, spark
from tests.data.test_inspection import folder, look  # noqa: F401, a fixture


def test_sparks_and_bins():
    assert spark((0, 1, 8, 4)) == " ▁█▄" and spark((0, 0)) == "  "
    assert bin_names((0, 4, 1024)) == ["0 to 3", "4 to 1,023", "1,024 or more"]


def test_the_text(folder):  # noqa: F811
    text = as_text(look(folder))
    assert f"{folder}: 4 datasets, 211 examples" in text
    row = next(line for line in text.splitlines() if line.startswith("a.jsonl"))
    assert row.split()[:8] == ["a.jsonl", "pair", "6", "3", "37.500%", "10", "1.8", "8.33%"]
    assert re.search(r"a\.jsonl +3 \(25\.0%\) +2 \(22\.2%\) +1 \(16\.7%\) +0 \(0\.0%\)\n", text)
    assert "2 texts are both in a.jsonl and in b.jsonl" in text
    assert "batches: 3 of 10 steps" in text and "a.jsonl, example 1\n  query     one\n  positive  red cat\n" in text
    assert "sample" not in text
    sampled = as_text(look(folder, most_read=50))
    assert "in a sample of 61 of 211 examples: there are more in the whole" in sampled


def test_the_command_and_the_page(folder, tmp_path, run_main):  # noqa: F811
    if importlib.util.find_spec("plotly") is None:
        pytest.skip("no plotly")
    done = run_main("inspect", folder, f"--output={tmp_path / 'i.html'}", "--global_batch_size=16", "--num_steps=5",
                    "--packing_blocks=2", "--max_length=5")
    assert "packing efficiency" in done.stdout and done.stdout.endswith("i.html has the same as a page\n")
    page = (tmp_path / "i.html").read_text()
    for part in ("Inspection:", "37.500%", "chart-lengths", "3 (25.0%)", html.escape("w100 one"), "packing efficiency"):
        assert part in page
    assert "<script src" not in page


@pytest.mark.parametrize("arguments, status, reason", [
    ([], 2, "name one DATA_DIR"), (["a", "b"], 2, "name one DATA_DIR, .* not 2"),
    (["a", "--exampels=1"], 2, "exampels"),
    (["a", "--batches=0"], 2, "at least 1"), (["nowhere"], 1, "nowhere does not exist"),
])
def test_usage_errors(run_main, arguments, status, reason):
    done = run_main("inspect", *arguments, check=False)
    assert done.returncode == status and re.search(reason, done.stderr.splitlines()[-1])


def test_a_missing_extra_is_named(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.delitem(sys.modules, "evaluation.report.inspect_page", raising=False)
    monkeypatch.delattr("evaluation.report.inspect_page", raising=False)
    with pytest.raises(ValueError, match=r'--output draws with plotly: pip install -e "\.\[report\]"'):
        inspect(InspectConfig(WhatToShow(output=str(tmp_path / "i.html"))), [str(folder)])
