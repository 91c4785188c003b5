"""The scores and tables of main.py report; the page as a browser shows it is in test_report_browser.py."""

import json
import re
import sys

import numpy as np
import pytest
from absl import flags

from evaluation.report.report import ReportConfig, report
from evaluation.report.runs import Key, read_runs
from evaluation.report.scores import compare, compare_trainings, outliers
from evaluation.report.tables import neighbours_table, outliers_table, run_name, scores_table
from evaluation.tasks.sts import SEVEN
from tests.evaluation.handmade import (
    language_lines,
    spearman_line,
    sts_items,
    sts_run,
    training_run,
    write_run,
)

STSB = Key("stsb", "test", "cosine_spearman")


def compared(*folders):
    return compare(read_runs([str(folder) for folder in folders]), 200)


def rows(comparison):
    return {row.key.task: row for row in comparison.headlines}


def test_scores_have_intervals_and_paired_differences(tmp_path):
    good, same, bad = (sts_run(tmp_path / name, noise) for name, noise in (("good", 0.1), ("same", 0.1), ("bad", 2.0)))
    comparison = compared(good, same, bad)
    row = rows(comparison)["stsb"]
    first, equal, worse = row.cells
    assert first.value == pytest.approx(spearman_line("stsb", sts_items(0.1))[3])
    assert first.interval.low < first.value < first.interval.high and first.difference is None
    assert equal.difference == (0, (0, 0)) and not equal.difference.is_clear
    assert worse.difference.value == worse.value - first.value
    assert worse.difference.interval.low < worse.difference.value < worse.difference.interval.high < 0
    assert worse.difference.is_clear and row.best() == [0, 1] and not comparison.notices


def test_means_of_items_and_of_parts(tmp_path):
    found = [1.0] * 30 + [0.0] * 10
    lines = [["cafés", "heldout", "mrr@10", 75.0, 40], ["cafés:a", "heldout", "mrr@10", 100.0, 30], *language_lines(80)]
    items = {"cafés": {"mrr@10": found, "part": ["a"] * 30 + ["b"] * 10}, "ntrex": {}}
    comparison = compared(write_run(tmp_path / "a", lines, items))
    mean = rows(comparison)["cafés"].cells[0]
    assert mean.value == 75 and 50 < mean.interval.low < 75 < mean.interval.high < 95
    part = comparison.others["cafés"][0]
    assert part.key.task == "cafés:a" and part.cells[0].interval == (100, 100)
    languages = rows(comparison)["ntrex, mean of parts"].cells[0]
    assert (languages.value, languages.interval, languages.note) == (70, None, "")
    assert len(comparison.others["ntrex"]) == 3 and comparison.mean_of_seven is None and not comparison.notices


def test_means_over_parts_of_different_sizes_draw_each_part(tmp_path):
    found = {"cite": [1.0, 0.0] * 50, "coread": [1.0] * 30 + [0.0] * 10}
    items = {"scidocs": {"map": found["cite"] + found["coread"], "part": ["cite"] * 100 + ["coread"] * 40}}
    lines = [["scidocs", "test", "map", 62.5, 2], ["scidocs:cite", "test", "map", 50.0, 100],
             ["scidocs:coread", "test", "map", 75.0, 40]]
    comparison = compared(write_run(tmp_path / "a", lines, items))
    mean, parts = rows(comparison)["scidocs"].cells[0], [row.cells[0] for row in comparison.others["scidocs"]]
    assert mean.interval.low < 62.5 < mean.interval.high and not comparison.notices
    # the variance of a mean of two independent scores: a quarter of the sum of theirs
    assert np.ptp(mean.interval) == pytest.approx(np.hypot(*[np.ptp(part.interval) for part in parts]) / 2, rel=0.2)


def test_languages_share_their_sentences(tmp_path):
    """A sentence that is easy in one language is easy in all: the mean over languages is hardly surer than one."""
    found = np.random.default_rng(0).integers(0, 2, 60).astype(float).tolist()
    value = 100 * float(np.mean(found))
    items = {"ntrex": {"translation_accuracy": found * 3, "part": ["de"] * 60 + ["fr"] * 60 + ["zh"] * 60}}
    lines = [["ntrex_mean_of_3", "test", "translation_accuracy", value, 3]]
    lines += [[f"ntrex:{name}", "test", "translation_accuracy", value, 60] for name in ("de", "fr", "zh")]
    comparison = compared(write_run(tmp_path / "a", lines, items))
    (mean,), parts = comparison.headlines, comparison.others["ntrex"]
    assert mean.key.task == "ntrex_mean_of_3" and len(parts) == 3 and not comparison.notices
    assert np.ptp(mean.cells[0].interval) == pytest.approx(np.ptp(parts[0].cells[0].interval), rel=0.25)


def test_scores_without_items_of_their_own_have_no_interval(tmp_path):
    parts = {name: sts_items(0.3, n=n, seed=n, part=name) for name, n in (("a", 30), ("b", 40))}
    values = [spearman_line(f"sts12:{name}", items) for name, items in parts.items()]
    joined = {name: parts["a"][name] + parts["b"][name] for name in parts["a"]}
    lines = [spearman_line("sts12", joined), ["sts12", "test", "cosine_pearson", 70.0, 70],
             ["sts12", "test", "cosine_spearman_mean", (values[0][3] + values[1][3]) / 2, 2], *values,
             ["sicke", "test", "accuracy", 75.0, 4], ["sicke", "dev", "accuracy", 75.0, 8],
             ["sts_mean_of_1", "test", "cosine_spearman", 70.0, 1]]
    items = {"sts12": joined, "sicke": {"accuracy": [1.0, 1.0, 0.0, 1.0]}}
    comparison = compared(write_run(tmp_path / "a", lines, items))
    with_interval = {(row.key.task, row.key.split, row.key.metric) for row in
                     [*comparison.headlines, *comparison.others["sts12"]] if row.cells[0].interval}
    assert with_interval == {("sts12", "test", "cosine_spearman"), ("sts12", "test", "cosine_spearman_mean"),
                             ("sts12:a", "test", "cosine_spearman"), ("sts12:b", "test", "cosine_spearman"),
                             ("sicke", "test", "accuracy")}
    assert [row.key.task for row in comparison.headlines] == ["sts12", "sicke", "sicke"] and not comparison.notices


def test_mean_of_seven_says_what_it_lacks(tmp_path):
    whole, partial = sts_run(tmp_path / "whole", 0.3, SEVEN), sts_run(tmp_path / "partial", 0.3, SEVEN[:3] + SEVEN[5:])
    comparison = compared(whole, partial)
    first, second = comparison.mean_of_seven.cells
    expected = np.mean([row.cells[0].value for row in comparison.headlines])
    assert first.value == pytest.approx(expected) and first.note == "" and first.interval.low < expected
    assert second.note == "mean of 5 of 7: lacks sts15, sts16" and second.difference is None
    assert comparison.mean_of_seven.best() == []
    page = scores_table(comparison, ["whole", "partial"])
    assert "mean of 5 of 7: lacks sts15, sts16" in page and "82.03" in page and "Published figures: all-MiniLM" in page
    # seven tasks that are drawn independently: a narrower interval than that of one
    assert np.ptp(first.interval) < 0.7 * np.mean([np.ptp(row.cells[0].interval) for row in comparison.headlines])


def test_other_items_are_not_compared(tmp_path):
    good = sts_run(tmp_path / "good", 0.1)
    items = {"stsb": sts_items(0.1, sentence="B {row}")}
    other = write_run(tmp_path / "other", [spearman_line("stsb", items["stsb"])], items)
    fewer = {"stsb": sts_items(0.1, n=30)}
    short = write_run(tmp_path / "short", [spearman_line("stsb", fewer["stsb"])], fewer)
    comparison = compared(good, other, short)
    row = rows(comparison)["stsb"]
    assert [cell.difference for cell in row.cells] == [None, None, None] and row.best() == []
    assert row.cells[1].note == "not the items of the first run"
    assert comparison.notices == [
        "stsb (test): good and other cannot be compared: sentence1 of item 1 is 'first A 0 & <b>b</b>' and 'first B 0'",
        "stsb (test): good and short cannot be compared: n is 40 and 30",
    ]


def test_items_that_contradict_the_results_give_no_interval(tmp_path):
    items = {"stsb": sts_items(0.2)}
    folder = write_run(tmp_path / "a", [["stsb", "test", "cosine_spearman", 12.5, 40]], items)
    comparison = compared(folder)
    assert rows(comparison)["stsb"].cells[0].interval is None
    assert re.fullmatch(r"a, stsb cosine_spearman: no interval: its items have the score \d+\.\d{4}, not 12\.5000",
                        comparison.notices[0])


def test_too_few_pairs_give_no_interval(tmp_path):
    items = {"stsb": sts_items(0.2, n=2)}
    items["stsb"] |= {"cosine": [0.1, 0.2], "score": [1.0, 2.0]}
    comparison = compared(write_run(tmp_path / "a", [["stsb", "test", "cosine_spearman", 100.0, 2]], items))
    assert rows(comparison)["stsb"].cells[0].interval is None
    assert "a draw from the 2 pairs has only one value" in comparison.notices[0]


def test_trainings_are_compared_at_their_last_step(tmp_path):
    first, second = training_run(tmp_path / "first"), training_run(tmp_path / "second", noise=5.0)
    runs = read_runs([str(first), str(second)])
    progress, notices = compare_trainings(runs, 200)
    assert list(progress) == ["sts_spearman", "heldout_mrr@10", "translation_mse:de"] and not notices
    mine, other = progress["sts_spearman"]
    assert (mine.first[0], mine.last[0]) == (0, 20) and mine.best[1] >= mine.last[1]
    assert mine.cell.interval.low < mine.cell.value <= mine.cell.interval.high
    assert other.cell.difference.is_clear and other.cell.difference.value == other.cell.value - mine.cell.value
    assert progress["heldout_mrr@10"][0].cell.interval and progress["translation_mse:de"][0].best[0] == 20
    assert len(runs[0].training) == 23 and not runs[0].lines


def test_runs_are_named_by_the_folders_that_tell_them_apart(tmp_path):
    places = [sts_run(tmp_path / name, 0.1) for name in ("x/eval", "y/eval", "z")]
    places[2] = sts_run(tmp_path / "z", 0.1, name="results-bf16.json") / "results-bf16.json"
    runs = read_runs([str(places[0]), str(places[1] / "results.json"), str(places[2])])
    assert [run.name for run in runs] == ["x/eval", "y/eval", "results-bf16"]
    assert [run.name for run in read_runs([str(places[0]), str(places[1])], ("a", "b"))] == ["a", "b"]
    for names in (("a",), ("a", "a")):
        with pytest.raises(ValueError, match=rf"--names={','.join(names)} must be 2 different names"):
            read_runs([str(places[0]), str(places[1])], names)
    with pytest.raises(ValueError, match="eval is given twice"):
        read_runs([str(places[0]), f"{places[0]}/../eval"])
    with pytest.raises(ValueError, match="these runs would have the same name: give --names=a,b"):
        read_runs([str(places[0]), str(places[0] / "results.json")])


def test_a_folder_is_one_run_of_several_files(tmp_path):
    folder = sts_run(tmp_path / "a", 0.1)
    sts_run(folder, 0.2, ("sickr",), name="results-sick.json")
    dev = {"stsb": sts_items(0.3, n=20)}
    write_run(folder, [spearman_line("stsb", dev["stsb"], "dev")], dev, name="results_dev.json")
    training_run(folder)
    run = read_runs([str(folder)])[0]
    assert {key[:2] for key in run.lines} == {("stsb", "test"), ("sickr", "test"), ("stsb", "dev")}
    assert len(run.texts["token_counts"]) == 15 and run.training and not run.notices
    assert run.seconds() == {"stsb": 1.5, "sickr": 1.5}
    comparison = compare([run], 200)
    assert all(row.cells[0].interval for row in comparison.headlines) and not comparison.notices


@pytest.mark.parametrize("change, message", [
    (lambda folder: None, r"there is no file or folder \S+/run"),
    (lambda folder: folder.mkdir(), r"run is not a run: it has neither results\*\.json .*; it has nothing"),
    (lambda folder: (folder.mkdir(), (folder / "metrics.jsonl").touch()), "is not a run: .* it has metrics.jsonl"),
    (lambda folder: (sts_run(folder, 0.1), sts_run(folder, 0.1, ("sts12",), name="results2.json", model="m2")),
     r"results of different models cannot be one run; .*: m1 in \S+results.json, m2 in \S+results2.json"),
    (lambda folder: (sts_run(folder, 0.1), sts_run(folder, 0.1, name="results2.json")),
     r"results2.json: result 1, stsb test cosine_spearman, was already in \S+results.json"),
    (lambda folder: (sts_run(folder, 0.1), (folder / "results.json").write_text("{")), "results.json is not JSON"),
    (lambda folder: (sts_run(folder, 0.1), (folder / "results.json").write_text("{}")), "is not a results.json"),
    (lambda folder: (sts_run(folder, 0.1), (folder / "results.json").write_text('[{"task": "a"}]')),
     "results.json: result 1 lacks split, metric, value, n, model, code, seconds"),
    (lambda folder: write_run(folder, [["a", "test", "map", "50", 2]], {}), "result 1: value is not a number: '50'"),
    (lambda folder: write_run(folder, [["a", 3, "map", 50.0, 2]], {}), "result 1: split is not a text: 3"),
    (lambda folder: (sts_run(folder, 0.1), (folder / "results.items.json.gz").write_bytes(b"\x1f\x8b\x08")),
     "results.items.json.gz is damaged"),
    (lambda folder: write_run(folder, [["a", "test", "map", 50.0, 2]], {"a": {"map": [0.5], "part": []}}),
     "results.items.json.gz: the columns of a differ in length: map 1, part 0"),
    (lambda folder: (training_run(folder), (folder / "metrics.jsonl").write_text('{"step": 1}\nx\n{"step": 2}\n')),
     r"metrics.jsonl:2: not a line of metrics"),
])
def test_what_is_no_run_is_named(tmp_path, change, message):
    change(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        read_runs([str(tmp_path / "run")])


def test_what_is_missing_is_said(tmp_path):
    run = read_runs([str(sts_run(tmp_path / "a", 0.1, with_items=False))])[0]
    assert re.fullmatch(r"\S+/a/results.items.json.gz is missing: results.json has no intervals, .*", run.notices[0])
    assert rows(compare([run], 100))["stsb"].cells[0].interval is None
    lines = [spearman_line(task, sts_items(0.1)) for task in ("stsb", "sickr")]
    run = read_runs([str(write_run(tmp_path / "b", lines, {"stsb": sts_items(0.1)}))])[0]
    assert run.notices[0].endswith("results.items.json.gz has no items of sickr: they have no intervals")


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    folder = training_run(tmp_path / "a")
    complete = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(complete + '{"step": 21, "lo')
    assert read_runs([str(folder)])[0].training == [json.loads(line) for line in complete.splitlines()]


def test_outliers_differ_most_in_rank():
    columns = {"score": [5, 4, 3, 2, 1, 0], "cosine": [0.9, 0.1, 0.7, 0.6, 0.5, 0.8]}
    assert outliers(columns, 2) == [(1, 2, 6), (5, 6, 2)]


def test_texts_are_escaped_in_every_table(tmp_path):
    evil = "<script>alert(1)</script> {row}"
    items = {"stsb": sts_items(0.3, sentence=evil)}
    neighbours = [{"text": "<i>t</i>", "nearest": [["<b>n</b>" + "x" * 400, 0.5]]}]
    run = read_runs([str(write_run(tmp_path / "a<b>", [spearman_line("stsb", items["stsb"])], items,
                                   neighbours=neighbours))])[0]
    names = [run_name(run.name, "#000000")]
    tables = outliers_table(("stsb", "test", ""), [run], names) + neighbours_table([run], names)
    assert not re.search("<script|<i>|<b>", tables)
    assert "&lt;script&gt;alert(1)" in tables and "a&lt;b&gt;" in tables and "&lt;b&gt;n" in tables
    assert "x" * 301 not in tables


def test_flags_are_checked(tmp_path, run_main):
    for arguments, message in (([], "name at least one RUN"), (["a", "--nam=b"], "not a flag: '--nam=b'")):
        with pytest.raises(flags.Error, match=message):
            report(ReportConfig(), arguments)
    done = run_main("report", tmp_path, "--resamples=10", check=False)
    assert done.returncode == 2 and "--resamples=10: it must be at least 100" in done.stderr.splitlines()[-1]
    done = run_main("report", tmp_path, f"--output={tmp_path / 'a.html'}", check=False)
    assert done.returncode == 1 and f"{tmp_path} is not a run" in done.stderr.splitlines()[-1]
    assert "results.items.json.gz" in run_main("report", "--help").stdout


def test_plotly_is_an_extra(tmp_path, monkeypatch):
    for module in ("evaluation.report.page", "evaluation.report.charts"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ValueError, match=r'needs plotly: pip install -e "\.\[report\]"'):
        report(ReportConfig(output=str(tmp_path / "a.html")), [str(sts_run(tmp_path / "a", 0.1))])
