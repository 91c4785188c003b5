import gzip
import types

import numpy as np
import pytest

from evaluation.tasks import transfer
from evaluation.tasks.transfer import FOLDS, LABELS, LabelledPair, premise_folds, read_task


def write(path, *lines):
    text = "".join(line + "\n" for line in lines).encode()
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


class AngleEmbedder:
    """A text is an angle in degrees and, after a comma, a length: "30" or "30,2"."""

    def __init__(self, normalize):
        self.encoder = types.SimpleNamespace(config=types.SimpleNamespace(normalize=normalize))

    def __call__(self, texts):
        angles, lengths = np.array([[float(part) for part in (text + ",1").split(",")[:2]] for text in texts]).T
        return lengths[:, None] * np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)


def planted(generator, n):
    """Entailment: the same direction; neutral: a right angle; contradiction: opposite. Three pairs a premise."""
    rows = []
    for _ in range(n):
        angle = generator.integers(360)
        rows += [(f"{angle}", f"{angle + 90 * label + generator.normal():.3f}", name)
                 for label, name in enumerate(LABELS)]
    return rows


def table(rows_of_split, label_column):
    header = f"sentence1\tsentence2\tsplit\tsource\t{label_column}"
    return [header] + [f"{first}\t{second}\t{split}\there\t{label.upper()}"
                       for split, rows in rows_of_split.items() for first, second, label in rows]


def sick_lines(rows):
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    return [header] + [f"{number}\t{first}\t{second}\t3.5\t{label.upper()}"
                       for number, (first, second, label) in enumerate(rows)]


def write_snli(folder, split, rows):
    for name, column in zip(("s1", "s2", "labels"), zip(*rows)):
        write(folder / f"{name}.{split}", *column)


def test_a_probe_finds_the_labels(tmp_path):
    generator = np.random.default_rng()
    splits = {split: planted(generator, count) for split, count in (("train", 200), ("dev", 10), ("test", 20))}
    splits["test"][-1] = *splits["test"][-1][:2], LABELS[0]  # contradiction, mislabelled
    write(tmp_path / "eval" / "sick.tsv", *table(splits, "entailment_label"))
    task = read_task(str(tmp_path), "sicke")
    assert task.name == "sicke"
    assert set(task.texts) == {text for rows in splits.values() for row in rows for text in row[:2]}
    scores = task.score(AngleEmbedder(normalize=True))
    assert scores.results == [("sicke", "test", "accuracy", pytest.approx(100 * 59 / 60), 60),
                              ("sicke", "dev", "accuracy", 100.0, 30)]
    assert scores.items == {"accuracy": [1.0] * 59 + [0.0]}


def test_without_a_train_split_the_probe_learns_from_dev_and_says_so(tmp_path, caplog):
    rows = [(f"{premise}", f"0,{1 + 3 * label}", name) for premise in range(20) for label, name in enumerate(LABELS)]
    lines = table({"dev": rows, "test": rows}, "label") + ["0\t1\tdev\there\t-"]  # the label is sentence2's length
    write(tmp_path / "snli_dev_test.tsv.gz", *lines)
    with caplog.at_level("INFO", "absl"):
        task = read_task(str(tmp_path), "snli")
    assert task.name == "snli_fit_on_dev"
    assert "snli has no train split: snli_fit_on_dev fits its probe on the 60 pairs of dev" in caplog.text
    assert "left out 1 pairs without a majority label" in caplog.text
    scores = task.score(AngleEmbedder(normalize=False))
    assert scores.results == [("snli_fit_on_dev", "test", "accuracy", 100.0, 60),
                              ("snli_fit_on_dev", "dev", "accuracy", 100.0, 60)]
    test, dev = task.score(AngleEmbedder(normalize=True)).results
    assert test.value == dev.value == pytest.approx(100 / 3)


def test_cross_validation_asks_the_fits_that_have_not_seen_the_premise(monkeypatch):
    dev = [LabelledPair(str(number // 3), str(number), number % 3) for number in range(30)]
    test = dev[:9]
    asked = {}

    def fit(pairs, subsets, strengths, features, num_classes):
        asked.update(subsets=subsets)
        return list(range(len(strengths)))

    def predict(probe, pairs, features):
        """Right with the strength of number 3 alone: fit j about fold j, and the last about every second pair."""
        right = np.full((len(pairs.labels), FOLDS + 1), -1)
        folds = premise_folds(dev)[:len(pairs.labels)]
        if probe == 3:
            right[np.arange(len(folds)), folds] = pairs.labels
            right[::2, -1] = pairs.labels[::2]
        return right

    monkeypatch.setattr("evaluation.measures.probe.fit", fit)
    monkeypatch.setattr("evaluation.measures.probe.predict", predict)
    scores = transfer.evaluate_transfer(
        lambda texts: np.ones((len(texts), 2)), {"dev": dev, "test": test}, transfer.snli_features, normalize=False)
    assert (scores.strength, scores.dev_accuracy) == (2.0, 1.0)
    assert scores.correct.tolist() == [True, False] * 4 + [True]
    folds = premise_folds(dev)
    assert asked["subsets"].shape == (30, FOLDS + 1) and asked["subsets"][:, -1].all()
    for fold in range(FOLDS):
        np.testing.assert_array_equal(asked["subsets"][:, fold], folds != fold)
        assert {dev[row].sentence1 for row in np.flatnonzero(folds == fold)} == {str(fold), str(fold + FOLDS)}


@pytest.mark.parametrize("downstream", ["", "downstream"])
def test_sentevals_layout_reads_the_same(tmp_path, downstream):
    generator = np.random.default_rng()
    splits = {split: planted(generator, count) for split, count in (("train", 4), ("dev", 2), ("test", 3))}
    write(tmp_path / "table" / "sick.tsv", *table(splits, "entailment_label"))
    write(tmp_path / "table" / "snli.tsv.gz", *table(splits, "label"))
    for split, name in (("train", "train"), ("dev", "trial"), ("test", "test_annotated")):
        write(tmp_path / downstream / "SICK" / f"SICK_{name}.txt", *sick_lines(splits[split]))
        write_snli(tmp_path / downstream / "SNLI", split, splits[split])
    for name in transfer.TASKS:
        task, from_table = (read_task(str(folder), name) for folder in (tmp_path, tmp_path / "table"))
        assert task.name == from_table.name == name
        assert task.score.keywords == from_table.score.keywords
        assert task.score.keywords["splits"]["dev"][0] == LabelledPair(*splits["dev"][0][:2], 0)


GOOD = {split: [("a", "b", label) for label in LABELS] for split in ("train", "dev", "test")}


@pytest.mark.parametrize("row, message", [
    ("a\tb\ttest\there", r"sick.tsv:11: 4 tab-separated columns, but the header has 5"),
    (" \tb\ttest\there\tNEUTRAL", "sick.tsv:11: the first sentence is empty"),
    ("a\t\ttest\there\tNEUTRAL", "sick.tsv:11: the second sentence is empty"),
    ("a\tb\ttest\there\tNEUTRALLY", "sick.tsv:11: the label 'neutrally' is none of entailment, neutral, contradiction"),
    ("a\tb\ttest\there\t-", "sick.tsv:11: the label '-' is none of"),
    ("a\tb\ttrial\there\tNEUTRAL", "sick.tsv:11: the split 'trial' is none of train, dev, test"),
])
def test_a_bad_row_of_a_table_is_named(tmp_path, row, message):
    write(tmp_path / "sick.tsv", *table(GOOD, "entailment_label"), row)
    with pytest.raises(ValueError, match=message):
        read_task(str(tmp_path), "sicke")


@pytest.mark.parametrize("splits, message", [
    ({"dev": GOOD["dev"], "test": GOOD["test"]}, "has no row of the split 'train'; it has dev, test"),
    ({"train": GOOD["train"], "test": GOOD["test"]}, "has no row of the split 'dev'; it has train, test"),
    (GOOD | {"dev": GOOD["dev"][:2]}, "the dev split of sicke has no pair with the label 'contradiction'"),
])
def test_a_split_that_lacks_something_is_named(tmp_path, splits, message):
    write(tmp_path / "sick.tsv", *table(splits, "entailment_label"))
    with pytest.raises(ValueError, match=message):
        read_task(str(tmp_path), "sicke")


def test_a_table_without_its_columns_and_a_folder_without_a_table(tmp_path):
    with pytest.raises(ValueError, match=r"has no snli: neither .*SNLI nor .*snli.tsv"):
        read_task(str(tmp_path), "snli")
    write(tmp_path / "snli.tsv", "sentence1\tsentence2\tgold_label")
    with pytest.raises(ValueError, match=r"snli.tsv:1: the header lacks label, split; it has sentence1, sentence2, g"):
        read_task(str(tmp_path), "snli")


@pytest.mark.parametrize("name, lines, message", [
    ("s2.dev", ("b", "b"), r"s1.dev:3: there is no such line in .*s2.dev"),
    ("labels.dev", (*LABELS, "neutral"), r"labels.dev:4: there is no such line in .*s1.dev"),
    ("s1.dev", ("a", "", "a"), r"s1.dev:2: the first sentence is empty"),
    ("labels.dev", (*LABELS[:2], "maybe"), r"s1.dev:3: the label 'maybe' is none of"),
    ("labels.dev", ("-", "-", "-"), r"s1.dev has no pairs"),
])
def test_bad_files_of_sentevals_snli(tmp_path, name, lines, message):
    for split, rows in GOOD.items():
        write_snli(tmp_path / "SNLI", split, rows)
    write(tmp_path / "SNLI" / name, *lines)
    with pytest.raises(ValueError, match=message):
        read_task(str(tmp_path), "snli")
    (tmp_path / "SNLI" / name).unlink()
    with pytest.raises(OSError, match=name):
        read_task(str(tmp_path), "snli")


def test_a_bad_line_of_sentevals_sick(tmp_path):
    for name in ("train", "trial", "test_annotated"):
        write(tmp_path / "SICK" / f"SICK_{name}.txt", *sick_lines(GOOD["train"]))
    write(tmp_path / "SICK" / "SICK_trial.txt", *sick_lines(GOOD["dev"]), "9\ta\tb\t3.5")
    with pytest.raises(ValueError, match=r"SICK_trial.txt:5: 4 tab-separated columns, but the header has 5"):
        read_task(str(tmp_path), "sicke")
