import gzip
import json

import numpy as np
import pytest

from benchmarks.texts import draw_pairs, hold_out, mixed, read_training_pairs


@pytest.fixture
def data_dir(tmp_path):
    """Two files of pairs over few texts, so that pairs share texts."""
    (tmp_path / "train").mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("first", 300), ("second", 60)):
        lines = [json.dumps([f"{name} {a}", f"{name} {b}"]) for a, b in generator.integers(200, size=(size, 2))]
        with gzip.open(tmp_path / "train" / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
    return str(tmp_path)


def test_drawn_pairs_are_an_equal_share_without_repeats(data_dir):
    pairs = read_training_pairs(data_dir)
    assert {name: len(each) for name, each in pairs.items()} == {"first": 300, "second": 60}
    drawn = draw_pairs(pairs, 80, seed=1)
    for name, each in drawn.items():
        assert len(each) == 40 and set(each) <= set(pairs[name])
    assert sorted(mixed(drawn, seed=2)) == sorted(drawn["first"] + drawn["second"])
    assert list(read_training_pairs(data_dir, ("second",))) == ["second"]


def test_no_text_is_both_trained_on_and_held_out(data_dir):
    pairs = read_training_pairs(data_dir)
    training, heldout = hold_out(pairs, 20, seed=3)
    texts = {text for pair in heldout for text in pair}
    assert len(heldout) == 20
    for name, each in training.items():
        assert each == [pair for pair in pairs[name] if not texts & set(pair)] and 0 < len(each) < len(pairs[name])


def test_too_much_asked_of_a_file(data_dir):
    with pytest.raises(ValueError, match="second has 60 pairs, fewer than the 100"):
        draw_pairs(read_training_pairs(data_dir), 200, seed=0)


def test_a_folder_without_training_files(tmp_path):
    with pytest.raises(ValueError, match="has no folder train/"):
        read_training_pairs(str(tmp_path))
