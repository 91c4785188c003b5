import gzip
import json

import pytest

from benchmarks.parallel_text import cut_parallel_text
from evaluation.tasks.sts import StsPair, read_sts
from evaluation.tasks.translation import read_parallel

PAIRS = [("A cat.", "A dog.", 1, "train"), ("a cat!", "A bird.", 2.5, "train"), ("A dog.", "A fish.", 3, "train"),
         ("A CAT", "Rain", 4, "dev"), ("Rain", "Snow", 0, "dev"), ("Hail", "Rain", 5, "test")]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "multilingual").mkdir()
    rows = ["sentence1\tsentence2\tscore\tsplit"] + ["\t".join(map(str, pair)) for pair in PAIRS]
    (tmp_path / "eval" / "stsb.tsv").write_text("\n".join(rows) + "\n")
    with gzip.open(tmp_path / "multilingual" / "stsb_multi_mt.jsonl.gz", "wt") as file:
        for language in ("de", "zh", "ru"):
            for first, second, score, split in PAIRS:
                file.write(json.dumps({"lang": language, "split": split, "sentence1": f"{language} {first}",
                                       "sentence2": f"{language} {second}", "score": score}) + "\n")
    return tmp_path


def test_parallel_and_cross_lingual_files(source, tmp_path):
    target = tmp_path / "target"
    cut_parallel_text(source, target, ["ru", "de"])
    train = read_parallel(target / "train" / "stsb.tsv.gz")
    assert (train.source_language, train.sources) == ("en", ["A dog.", "A bird.", "A fish."])  # no cat: it is in dev
    assert train.translations == {
        "ru": ["ru A dog.", "ru A bird.", "ru A fish."], "de": ["de A dog.", "de A bird.", "de A fish."]}
    assert read_parallel(target / "parallel" / "stsb_dev.tsv.gz").sources == ["A CAT", "Rain", "Snow"]
    assert read_parallel(target / "parallel" / "stsb_test.tsv.gz").translations["de"] == ["de Hail", "de Rain"]
    assert read_sts(target / "eval" / "stsb_en-de.tsv", "dev") == [
        StsPair("A CAT", "de Rain", 4.0), StsPair("Rain", "de Snow", 0.0)]
    assert len(read_sts(target / "eval" / "stsb_en-ru.tsv")) == 6


def test_rows_of_another_order_or_language(source, tmp_path):
    with pytest.raises(ValueError, match="xx train: the scores of 0 rows are not, in order, those of the 3 in English"):
        cut_parallel_text(source, tmp_path / "target", ["xx"])
    path = source / "eval" / "stsb.tsv"
    path.write_text(path.read_text().replace("2.5", "2"))
    with pytest.raises(ValueError, match="de train: the scores of 3 rows"):
        cut_parallel_text(source, tmp_path / "target", ["de"])
    assert not (tmp_path / "target").exists()
