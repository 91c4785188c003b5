import pytest

from evaluation.report.curves import curves_of, read_metrics


def test_titles_and_units_fit_the_objective():
    lines = [{"step": 0, "sts_spearman": 50.0}, {"step": 1, "loss": 2.0, "mse": 2.0}, {"step": 2, "sts_spearman": 60.0}]
    curves = curves_of(lines)
    assert curves.loss == [(1, 2.0)] and curves.scores == {"sts_spearman": [(0, 50.0), (2, 60.0)]}
    assert (curves.loss_title, curves.loss_unit) == ("mean squared error", "squared error per dimension")
    assert curves_of([{"step": 1, "loss": 1.0, "accuracy_at_1": 0.5}])[1:3] == ("contrastive loss", "nats")
    assert curves_of([{"step": 1, "loss": 1.0, "sct_loss": 0.5, "cd_loss": 0.5}]).loss_title == "loss"


@pytest.mark.parametrize("line", ['{"epoch": 1, "loss": 2}', '{"step": "1"}', "[1]"])
def test_the_metrics_of_another_tool_are_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a line of metrics"):
        read_metrics(path)


def test_a_last_line_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2}]
