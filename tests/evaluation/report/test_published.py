"""The published figures agree with each other and with what this project has measured of the real model."""

import pytest

from evaluation.report.published import AVERAGES, COLUMNS, TASKS
from evaluation.tasks.sts import SEVEN


def test_the_published_means_are_those_of_the_published_scores():
    averages = {model.model.partition(" (")[0]: model.values.get(COLUMNS[0]) for model in AVERAGES}
    whole = [model for model in TASKS if set(model.scores) == set(SEVEN)]
    assert len(whole) == 5
    for model in whole:
        assert sum(model.scores.values()) / 7 == pytest.approx(averages[model.model], abs=0.0051), model.model


def test_every_figure_has_a_source_and_a_known_column():
    assert all(model.source and set(model.scores) <= set(SEVEN) for model in TASKS)
    assert all(model.source and model.values and set(model.values) <= set(COLUMNS) for model in AVERAGES)
