import json
import sys
import types

import numpy as np
import pytest

from evaluation.evaluate import EvaluateConfig, evaluate

HEADER = "sentence1\tsentence2\tscore\tsplit\tsource\n"


@pytest.fixture
def data_dir(tmp_path):
    """Two STS files, one of them gold by the encoder's own cosines, and a file of another layout."""
    folder = tmp_path / "eval"
    folder.mkdir()
    rows = "".join(f"0\t{angle}\t{5 - angle / 20}\ttest\tx\n" for angle in range(0, 100, 10))
    (folder / "stsb.tsv").write_text(HEADER + rows + "0\t5\t1\tdev\tx\n0\t50\t4\tdev\tx\n0\t70\t3\tdev\tx\n")
    (folder / "sick.tsv").write_text(HEADER + rows)
    (folder / "banking77.tsv").write_text("text\tlabel\tsplit\nA\tB\ttest\n")
    (tmp_path / "heldout.jsonl").write_text('["0","1"]\n["20","21"]\n["40","39"]\n["41","80"]\n')
    return tmp_path


@pytest.fixture(autouse=True)
def encoder_of_angles(monkeypatch):
    """Stands for model.inference: a text is an angle in degrees, its embedding the direction."""

    class Encoder:
        config = types.SimpleNamespace(prompts=())

        @classmethod
        def load(cls, model, dtype):
            assert (model, dtype) == ("some/model", "float32")
            return cls()

        def encode(self, texts):
            angles = np.radians([float(text) for text in texts])
            return 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    monkeypatch.setitem(sys.modules, "model.inference", types.SimpleNamespace(Encoder=Encoder))
    return Encoder


def test_evaluate_writes_and_prints_every_task(data_dir, capsys):
    output = data_dir / "new" / "results.json"
    evaluate(EvaluateConfig(model="some/model", suite=("stsb", "sickr"), data_dir=str(data_dir), output=str(output),
                            pairs=(str(data_dir / "heldout.jsonl"),)))
    results = json.loads(output.read_text())
    assert [list(result.values()) for result in results] == [
        ["stsb", "test", "cosine_spearman", pytest.approx(100), 10],
        ["sickr", "test", "cosine_spearman", pytest.approx(100), 10],
        ["heldout", "heldout", "accuracy@1", 75.0, 4],
        ["heldout", "heldout", "mrr@10", pytest.approx(100 * (3 + 1 / 3) / 4), 4],
    ]
    table = capsys.readouterr().out
    assert all(f"{result['value']:.2f}" in table and result["task"] in table for result in results)


def test_retrieval_alone_uses_the_model_s_prompts(data_dir, encoder_of_angles):
    """Candidates at 11, 121, 139 and 180 degrees: the ranks are 1 to 4."""
    encoder_of_angles.config.prompts = (("query", "+"), ("passage", "1"))
    output = data_dir / "results.json"
    evaluate(EvaluateConfig(model="some/model", suite=("stsb",), data_dir=str(data_dir), output=str(output),
                            pairs=(str(data_dir / "heldout.jsonl"),)))
    values = [result["value"] for result in json.loads(output.read_text())]
    assert values == pytest.approx([100, 25, 100 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])


def test_evaluate_reads_the_split_and_the_folder_itself(data_dir):
    output = data_dir / "results.json"
    evaluate(EvaluateConfig(model="some/model", suite=("stsb",), data_dir=str(data_dir / "eval"), split="dev",
                            output=str(output)))
    [result] = json.loads(output.read_text())
    assert (result["split"], result["n"], result["value"]) == ("dev", 3, pytest.approx(-50))


@pytest.mark.parametrize("flags, message", [
    ((), "nothing to score: give --suite"),
    (("--suite=stsb,sts99",), "--suite=sts99 is unknown; --data_dir=. has sickr, stsb"),
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
