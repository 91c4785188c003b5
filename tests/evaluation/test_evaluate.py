import dataclasses
import gzip
import json
import math
import os

import pytest

from evaluation.evaluate import EvaluateConfig, evaluate, suite_means
from evaluation.results import Scored, items_path
from evaluation.task import Result, Scores
from evaluation.tasks.sts import SEVEN

HEADER = "sentence1\tsentence2\tscore\tsplit\tsource\n"


@pytest.fixture
def data_dir(tmp_path):
    """Two STS files, one of them gold by the encoder's own cosines, and a file of another layout."""
    folder = tmp_path / "eval"
    folder.mkdir()
    rows = "".join(f"0\t{angle}\t{5 - angle / 30}\ttest\tx\n" for angle in range(0, 100, 10))
    (folder / "stsb.tsv").write_text(HEADER + rows + "0\t5\t1\tdev\tx\n0\t50\t4\tdev\tx\n0\t70\t3\tdev\tx\n")
    (folder / "sick.tsv").write_text(HEADER + rows)
    (folder / "banking77.tsv").write_text("text\tlabel\tsplit\nA\tB\ttest\n")
    (tmp_path / "heldout.jsonl").write_text('["0","1"]\n["20","21"]\n["40","39"]\n["41","80"]\n')
    return tmp_path


def values(output):
    """[task, split, metric, value, n] of each line of results.json."""
    lines = json.loads(output.read_text())
    assert all(set(line) == {"task", "split", "metric", "value", "n", "model", "code", "seconds"} for line in lines)
    return [[line[name] for name in ("task", "split", "metric", "value", "n")] for line in lines]


def test_evaluate_writes_and_prints_every_task(data_dir, angle_encoder, capsys):
    output = data_dir / "new" / "results.json"
    evaluate(EvaluateConfig(model="angles-3", suite=("stsb", "sickr"), data_dir=str(data_dir), output=str(output),
                            pairs=(str(data_dir / "heldout.jsonl"),)))
    results = [result for result in values(output) if result[2] != "cosine_pearson"]
    assert results == [
        ["stsb", "test", "cosine_spearman", pytest.approx(100), 10],
        ["sickr", "test", "cosine_spearman", pytest.approx(100), 10],
        ["heldout", "heldout", "accuracy@1", 75.0, 4],
        ["heldout", "heldout", "mrr@10", pytest.approx(100 * (3 + 1 / 3) / 4), 4],
        ["sts_mean_of_2", "test", "cosine_spearman", pytest.approx(100), 2],
    ]
    table = capsys.readouterr().out
    assert all(f"{result[3]:.2f}" in table and result[0] in table for result in results)
    lines = json.loads(output.read_text())
    assert {line["model"] for line in lines} == {"angles-3.0"} and all(line["seconds"] > 0 for line in lines)


def test_items_give_the_results_again(data_dir, angle_encoder):
    output = data_dir / "results.json"
    evaluate(EvaluateConfig(model="angles-3", suite=("stsb",), data_dir=str(data_dir), output=str(output),
                            pairs=(str(data_dir / "heldout.jsonl"),)))
    items = json.loads(gzip.decompress(items_path(output).read_bytes()))
    stsb, heldout = items["tasks"]["stsb"], items["tasks"]["heldout"]
    assert stsb["cosine"] == pytest.approx([math.cos(math.radians(angle)) for angle in range(0, 100, 10)], abs=1e-6)
    assert stsb["sentence2"] == [str(angle) for angle in range(0, 100, 10)] and stsb["score"][-1] == 2.0
    for _, _, metric, value, n in values(output)[-2:]:
        assert value == pytest.approx(100 * sum(heldout[metric]) / n) and len(heldout[metric]) == n
    assert len(items["token_counts"]) == 14  # distinct texts
    assert items["neighbours"][0]["nearest"][0][1] <= 1


def test_each_distinct_text_is_embedded_once(data_dir, angle_encoder, monkeypatch):
    encoded = []
    original = angle_encoder.encode
    monkeypatch.setattr(angle_encoder, "encode", lambda self, texts, **options: (
        encoded.extend(texts), original(self, texts, **options))[1])
    evaluate(EvaluateConfig(model="angles-3", suite=("stsb", "sickr"), data_dir=str(data_dir)))
    assert sorted(encoded, key=int) == [str(angle) for angle in range(0, 100, 10)]


def scored(task, metric, value, split="test"):
    return Scored(task, Scores([Result(task, split, metric, value, 10), Result(task, "dev", metric, 1.0, 10)], {}), 2.0)


def test_means_of_whole_suites():
    tasks = [scored("askubuntu", "map", 50), scored("scidocs", "map", 60), scored("sicke", "accuracy", 70)]
    [mean] = suite_means(tasks)  # no snli
    assert mean == ("reranking_mean", Scores([("reranking_mean", "test", "map", 55, 2)], {}), 4)
    own_file = Scored("scidocs", Scores([Result("scidocs", "heldout", "map", 60, 10)], {}), 2.0)
    assert not list(suite_means([scored("askubuntu", "map", 50), own_file]))
    means = list(suite_means([*tasks, scored("snli", "accuracy", 80), scored("snli_fit_on_dev", "accuracy", 9)]))
    assert [one.scores.results for one in means] == [
        [("reranking_mean", "test", "map", 55, 2)], [("transfer_mean", "test", "accuracy", 75, 2)]]
    seven = [Scored(task, Scores([Result(task, "test", "cosine_spearman", 10 * index, 9)], {}), 1.0)
             for index, task in enumerate(SEVEN)]
    assert [one.scores.results for one in suite_means(seven)] == [[("sts_mean", "test", "cosine_spearman", 30, 7)]]


def test_a_task_without_a_score_does_not_lose_the_others(data_dir, angle_encoder):
    rows = "".join(f"0\t0\t{score}\ttest\tx\n" for score in (1, 2, 3))
    (data_dir / "eval" / "sick.tsv").write_text(HEADER + rows)
    output = data_dir / "results.json"
    output.write_text("of an earlier run")
    with pytest.raises(ValueError, match="sickr: Spearman correlation is undefined: all 3 values of the first input"):
        evaluate(EvaluateConfig(model="angles-3", suite=("sickr", "stsb"), data_dir=str(data_dir), output=str(output)))
    assert [result[0] for result in values(data_dir / "partial-results.json")] == ["stsb", "stsb"]
    assert output.read_text() == "of an earlier run"


def test_retrieval_alone_uses_the_model_s_prompts(data_dir, angle_encoder, monkeypatch):
    """Candidates at 11, 121, 139 and 180 degrees: the ranks are 1 to 4."""
    original = angle_encoder.__init__

    def with_prompts(self, length):
        original(self, length)
        self.config.prompts = (("query", "+"), ("passage", "1"))

    monkeypatch.setattr(angle_encoder, "__init__", with_prompts)
    output = data_dir / "results.json"
    evaluate(EvaluateConfig(model="angles-3", suite=("stsb",), data_dir=str(data_dir), output=str(output),
                            pairs=(str(data_dir / "heldout.jsonl"),)))
    scores = {metric: value for _, _, metric, value, _ in values(output)}
    assert scores["cosine_spearman"] == pytest.approx(100)
    assert [scores["accuracy@1"], scores["mrr@10"]] == pytest.approx([25, 100 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])


def test_evaluate_reads_the_split_and_the_folder_itself(data_dir, angle_encoder):
    output = data_dir / "results.json"
    evaluate(EvaluateConfig(model="angles-3", suite=("stsb",), data_dir=str(data_dir / "eval"), split="dev",
                            output=str(output)))
    assert values(output)[0] == ["stsb", "dev", "cosine_spearman", pytest.approx(-50), 3]


@pytest.mark.parametrize("flags, message", [
    ((), "nothing to score: give --suite"),
    (("--suite=stsb,sts99",), "--suite=sts99 is unknown: did you mean sts?; --data_dir=. has the STS files of "
                                "sickr, stsb"),
    (("--suite=sts,stsb",), "--data_dir=. lacks 5 of 7 tasks: sts12, sts13, sts14, sts15, sts16 (the lines "
                            "above say where each was looked for). To do without: --suite=stsb,sickr"),
    (("--suite=sickr", "--split=dev"), "no row of the split 'dev'; it has test"),
    (("--suite=stsb", "--data_dir=missing"), "--data_dir=missing is not a folder"),
])
def test_wrong_flags_fail_before_the_model_is_looked_for(data_dir, run_main, flags, message):
    flags = [flag.replace("--data_dir=", f"--data_dir={data_dir}/") for flag in flags]
    if not any(flag.startswith("--data_dir") for flag in flags):
        flags = [f"--data_dir={data_dir}", *flags]
    done = run_main("evaluate", "--model=/nowhere", *flags, check=False)
    last_line = done.stderr.splitlines()[-1].replace(f"{data_dir}/", "").replace(str(data_dir), ".")
    assert done.returncode == 1 and message in last_line


@pytest.mark.parametrize("change, message", [
    ({"data_dir": ""}, "--suite=stsb needs --data_dir, the folder of its files"),
    ({"split": ""}, "--split is empty; it must be test, dev or train"),
    ({"languages": ("deu",)}, "--languages=deu chooses languages of ntrex and tatoeba: give --suite=bitext, ntrex "),
    ({"suite": ("transfer", "bitext")}, "--data_dir=.* lacks 3 of 4 tasks: snli, ntrex, tatoeba .*: --suite=sicke$"),
    ({"suite": ("snli",)}, "--data_dir=.* has no snli: neither "),  # alone it says itself where it was looked for
    ({"output": "eval/stsb.tsv/results.json"}, r"--output=\S+/results.json: cannot write in \S+stsb.tsv: .*exists"),
    ({"pairs": ("/",)}, "--pairs=/ is a folder: name a file in it"),
    ({"parallel": ("/",)}, "--parallel=/ is a folder"), ({"reranking": ("/",)}, "--reranking=/ is a folder"),
    ({"retrieval": (__file__,)}, "--retrieval=.*py is a file: name the folder of corpus.jsonl"),
    ({"data_dir": __file__}, "--data_dir=.*py is not a folder"),
    ({"output": "eval"}, r"--output=\S+eval is a folder; name a file in it"),
])
def test_wrong_settings(data_dir, change, message):
    rows = "".join(f"A\tB\t2\t{split}\t{label}\n" for split in ("train", "dev", "test")
                   for label in ("entailment", "neutral", "contradiction"))
    (data_dir / "eval" / "sick.tsv").write_text("sentence1\tsentence2\tscore\tsplit\tentailment_label\n" + rows)
    if "output" in change:
        change = {"output": str(data_dir / change["output"])}
    config = EvaluateConfig(model="/nowhere", suite=("stsb",), data_dir=str(data_dir))
    with pytest.raises(ValueError, match=message):
        evaluate(dataclasses.replace(config, **change))


def test_results_outlive_a_run_with_bad_files(data_dir, angle_encoder):
    output = data_dir / "results.json"
    config = EvaluateConfig(model="angles-3", suite=("stsb",), data_dir=str(data_dir), output=str(output))
    evaluate(config)
    before = output.read_bytes(), items_path(output).read_bytes()
    with (data_dir / "eval" / "stsb.tsv").open("a") as file:
        file.write("0\t1\t9\ttest\tx\n")
    with pytest.raises(ValueError, match=r"stsb.tsv:15: score 9 is outside 0 to 5"):
        evaluate(config)
    assert before == (output.read_bytes(), items_path(output).read_bytes())
    assert not list(data_dir.glob(".*"))


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644)])
def test_the_umask_decides_the_permissions(data_dir, angle_encoder, umask, mode):
    output, before = data_dir / "results.json", os.umask(umask)
    try:
        evaluate(EvaluateConfig(model="angles-3", suite=("stsb",), data_dir=str(data_dir), output=str(output)))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (output, items_path(output))] == [mode, mode]
