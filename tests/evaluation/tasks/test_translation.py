import gzip
import json

import numpy as np
import pytest
import scipy.stats

from evaluation.evaluate import EvaluateConfig, evaluate
from evaluation.tasks import translation
from evaluation.tasks.sts import evaluate_sts, read_sts
from evaluation.tasks.translation import (
    ParallelTexts,
    evaluate_translations,
    read_parallel,
    read_suite_task,
    squared_errors,
)


def write(path, *lines):
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def lookup(rows):
    return lambda texts: np.array([rows[text] for text in texts])


def loop_scores(sources, targets, teacher):
    """(accuracy from source, to source, mean squared error) one number after the other, in float64."""
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    rows = range(len(sources))
    forth = [max(rows, key=lambda j, i=i: cosine(sources[i], targets[j])) == i for i in rows]
    back = [max(rows, key=lambda j, i=i: cosine(targets[i], sources[j])) == i for i in rows]
    squares = [(x - y) ** 2 for a, b in zip(teacher, targets) for x, y in zip(a, b)]
    return sum(forth) / len(rows), sum(back) / len(rows), sum(squares) / len(squares)


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_a_float64_loop_over_the_rows_of_each_language(seed):
    generator = np.random.default_rng(seed)
    n, d = 60, 5
    source, noise = generator.normal(size=(n, d)), generator.normal(size=(2, n, d))
    student = {f"en {i}": 3 * source[i] for i in range(n)}
    student |= {f"de {i}": source[i] + noise[0, i] / 3 for i in range(n)}
    student |= {f"fr {i}": source[i] + 2 * noise[1, i] for i in range(n)}
    teacher = {f"en {i}": row for i, row in enumerate(generator.normal(size=(n, d)))}
    has_french = generator.random(n) < 0.5
    parallel = ParallelTexts("en", [f"en {i}" for i in range(n)], {
        "de": [f"de {i}" for i in range(n)], "fr": [f"fr {i}" if has_french[i] else "" for i in range(n)]})
    scores = evaluate_translations(lookup(student), parallel, lookup(teacher))
    assert list(scores) == ["de", "fr"]
    for language, rows in (("de", range(n)), ("fr", np.flatnonzero(has_french))):
        expected = loop_scores([student[f"en {i}"] for i in rows], [student[f"{language} {i}"] for i in rows],
                               [teacher[f"en {i}"] for i in rows])
        result = scores[language]
        assert (result.from_source.mean(), result.to_source.mean(), result.mse) == pytest.approx(expected, rel=1e-6)
        assert result.accuracy == pytest.approx((expected[0] + expected[1]) / 2)
        assert len(result.from_source) == len(rows)
    assert 0.02 < scores["fr"].accuracy < scores["de"].accuracy < 1
    alone = evaluate_translations(lookup(student), parallel)["de"]
    assert (alone.accuracy, alone.mse) == (scores["de"].accuracy, None)


def test_equal_texts_are_one_candidate_and_other_ties_are_wrong():
    rows = {"yes": [1, 0], "sure": [1, 0.1], "no": [0, 1], "ja": [1, 0.02], "nein": [0, 1]}
    parallel = ParallelTexts("en", ["yes", "sure", "no"], {"de": ["ja", "ja", "nein"]})
    scores = evaluate_translations(lookup(rows), parallel)["de"]
    assert scores.from_source.tolist() == [1, 1, 1]  # "ja" is the nearest text, in whatever row
    assert scores.to_source.tolist() == [1, 0, 1]  # the "ja" of "sure" finds "yes"
    constant = evaluate_translations(lambda texts: np.ones((len(texts), 2)), parallel)["de"]
    assert not constant.from_source.any() and not constant.to_source.any()


def test_squared_errors():
    generator = np.random.default_rng(0)
    target, embeddings = generator.normal(size=(2, 40, 7)).astype(np.float32)
    expected = ((target.astype(np.float64) - embeddings) ** 2).sum(axis=1) / 7
    np.testing.assert_allclose(squared_errors(target, embeddings), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"the teacher's embeddings are \(40, 7\), the student's \(40, 6\)"):
        squared_errors(target, embeddings[:, :6])


def test_an_encoder_that_is_broken_is_named():
    parallel = ParallelTexts("en", ["a", "b"], {"de": ["c", "d"]})
    with pytest.raises(ValueError, match="2 of 2 embeddings are not finite, first that of 'a'"):
        evaluate_translations(lambda texts: np.full((len(texts), 2), np.nan), parallel)


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_read_parallel(tmp_path, name):
    path = write(tmp_path / name, "en\tde\tzh\r", 'A "b\tC\u2028d\t你好', " E \t \tF\r", "G\tH\t")
    texts = read_parallel(path)
    assert texts == ParallelTexts("en", ['A "b', "E", "G"], {"de": ["C\u2028d", "", "H"], "zh": ["你好", "F", ""]})


@pytest.mark.parametrize("lines, message", [
    ((), "a.tsv:1: the header must name two or more different languages; it has"),
    (("en",), "a.tsv:1: the header must name two or more different languages; it has en"),
    (("en\tde\tde",), "a.tsv:1: the header must name two or more different languages; it has en, de, de"),
    (("en\t\tde",), "a.tsv:1: the header must name two or more different languages"),
    (("en\tde", "A\tB", "A"), "a.tsv:3: 1 tab-separated columns, but the header has 2"),
    (("en\tde", "A\tB\tC"), "a.tsv:2: 3 tab-separated columns, but the header has 2"),
    (("en\tde", " \tB"), "a.tsv:2: the text in en, the source language, is empty"),
    (("en\tde\tfr", "A\t\t "), "a.tsv:2: no translation"),
    (("en\tde\tfr", "A\tB\t", "C\tD\t"), "a.tsv has no row in fr; it has 2 in de, 0 in fr"),
    (("en\tde",), "a.tsv has no row in de; it has 0 in de"),
])
def test_read_parallel_names_what_is_wrong(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_parallel(write(tmp_path / "a.tsv", *lines))


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"en\tde\nA\tB\xff\n")
    with pytest.raises(ValueError, match=r"a.tsv:2: not UTF-8"):
        read_parallel(path)


@pytest.fixture
def data_dir(tmp_path, angle_encoder):
    """Parallel texts and cross-lingual STS of the angles in their texts."""
    write(tmp_path / "dev.tsv.gz", "en\tde\tfr", "0\tde 10\t80", "50\tde 60\t", "90\tde 80\t10")
    angles = [f"0\tde {angle}\t{5 - angle / 20}\ttest" for angle in range(0, 100, 10)]
    write(tmp_path / "stsb_en-de.tsv", "sentence1\tsentence2\tscore\tsplit", *angles)
    return tmp_path


def scores(output):
    lines = json.loads(output.read_text())
    return [[line[name] for name in ("task", "split", "metric", "value", "n")]
            for line in lines if line["metric"] != "cosine_pearson"]


def test_evaluate_scores_translations_and_cross_lingual_sts(data_dir, capsys):
    output = data_dir / "results.json"
    config = EvaluateConfig(model="angles-2", parallel=(str(data_dir / "dev.tsv.gz"),), suite=("stsb_en-de",),
                            data_dir=str(data_dir), output=str(output))
    evaluate(config)
    accuracy = [
        ["dev:de", "heldout", "translation_accuracy", 100, 3],
        ["dev:de", "heldout", "translation_accuracy_from_source", 100, 3],
        ["dev:de", "heldout", "translation_accuracy_to_source", 100, 3],
        ["dev:fr", "heldout", "translation_accuracy", 0, 2],
        ["dev:fr", "heldout", "translation_accuracy_from_source", 0, 2],
        ["dev:fr", "heldout", "translation_accuracy_to_source", 0, 2],
    ]
    assert scores(output) == [["stsb_en-de", "test", "cosine_spearman", pytest.approx(100), 10], *accuracy]
    evaluate(EvaluateConfig(model="angles-2", parallel=config.parallel, teacher="angles-3", output=str(output)))

    def squared(degrees):  # distance of lengths 2 and 3, over two dimensions
        return (2 ** 2 + 3 ** 2 - 2 * 2 * 3 * np.cos(np.radians(degrees))) / 2

    mse_of = {"dev:de": 10, "dev:fr": 80}
    expected = [[task, "heldout", "mse", pytest.approx(100 * squared(degrees), rel=1e-5), accuracy[3 * row][-1]]
                for row, (task, degrees) in enumerate(mse_of.items())]
    assert scores(output) == [*accuracy[:3], expected[0], *accuracy[3:], expected[1]]
    mse = json.loads(output.read_text())[3]["value"]
    assert f"{mse:.4f}" in capsys.readouterr().out


@pytest.fixture
def embedder(angle_encoder):
    from evaluation.embedder import Embedder

    return Embedder(angle_encoder(2.0), teacher=Embedder(angle_encoder(2.0)))


def test_suite_task(tmp_path, embedder, monkeypatch):
    """deu finds all of its own, fra none; each text is embedded once."""
    rows = [("deu", "de 10", "0"), ("deu", "de 60", "50"), ("deu", "de 99", "100"),
            ("fra", "80", "0"), ("fra", "7", "90")]
    write(tmp_path / "tatoeba_v1.jsonl.gz",
          *(json.dumps({"lang": lang, "text": text, "eng": english}) for lang, text, english in rows))
    task = read_suite_task(str(tmp_path), "tatoeba")
    assert task.name == "tatoeba" and sorted(task.texts) == sorted({text for row in rows for text in row[1:]})
    embedder.remember(task.texts)
    results, items = task.score(embedder)
    assert sorted(embedder.encoder.encoded) == sorted(task.texts)
    mse = {task: np.mean([4 * (1 - np.cos(np.radians(degrees))) for degrees in angles])
           for task, angles in (("deu", (10, 10, 1)), ("fra", (80, 83)))}
    three = ("translation_accuracy", "translation_accuracy_from_source", "translation_accuracy_to_source")
    expected = [("tatoeba_mean_of_2", metric, 50, 2) for metric in three]
    expected += [("tatoeba_mean_of_2", "mse", 50 * (mse["deu"] + mse["fra"]), 2)]
    for language, accuracy, n in (("deu", 100, 3), ("fra", 0, 2)):
        expected += [(f"tatoeba:{language}", metric, accuracy, n) for metric in three]
        expected += [(f"tatoeba:{language}", "mse", 100 * mse[language], n)]
    assert [(task, metric, pytest.approx(value, rel=1e-5), n) for task, metric, value, n in expected] == [
        (result.task, result.metric, result.value, result.n) for result in results]
    assert {result.split for result in results} == {"test"}
    assert items["part"] == ["deu"] * 3 + ["fra"] * 2 and list(items) == ["part", *three, "mse"]
    for result in results[4:]:
        values = [value for part, value in zip(items["part"], items[result.metric]) if result.task.endswith(part)]
        assert result.value == pytest.approx(100 * np.mean(values))
    monkeypatch.setitem(translation.COMPLETE, "tatoeba", (2, 5))
    assert {result.task for result in task.score(embedder).results[:4]} == {"tatoeba"}
    [first, *_] = read_suite_task(str(tmp_path), "tatoeba", ("fra",)).score(embedder).results
    assert first.task == "tatoeba_mean_of_1"


TRANSLATION_EVALUATOR = """
import numpy as np, torch
from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator
class Given:
    def encode(self, texts, **_):
        return [torch.tensor(arguments["rows"][text]) for text in texts]
class Evaluator(TranslationEvaluator):
    def store_metrics_in_model_card_data(self, *_):
        pass
result = Evaluator(arguments["sources"], arguments["translations"], write_csv=False)(Given())
"""


def test_accuracies_equal_translation_evaluators(peer):
    """With texts that occur twice on either side, 120 rows of noise."""
    generator = np.random.default_rng(0)
    n = 120
    sources, translations = [f"en {i}" for i in range(n)], [f"de {i}" for i in range(n)]
    sources[7], sources[50] = sources[8], sources[51]
    translations[3], translations[90] = translations[4], translations[2]
    english = generator.normal(size=(n, 8))
    rows = {text: row.tolist() for text, row in zip(sources, english)}
    rows |= {text: row.tolist() for text, row in zip(translations, english + generator.normal(size=(n, 8)) / 2)}
    expected = peer(TRANSLATION_EVALUATOR, sources=sources, translations=translations, rows=rows)
    result = evaluate_translations(lookup(rows), ParallelTexts("en", sources, {"de": translations}))["de"]
    assert result.from_source.mean() == pytest.approx(expected["src2trg_accuracy"])
    assert result.to_source.mean() == pytest.approx(expected["trg2src_accuracy"])
    assert result.accuracy == pytest.approx(expected["mean_accuracy"])
    assert expected["src2trg_accuracy"] != expected["trg2src_accuracy"]


def test_cross_lingual_sts_is_the_rank_correlation_of_cosines(tmp_path):
    generator = np.random.default_rng(1)
    n = 40
    english, german, human = generator.normal(size=(n, 6)), generator.normal(size=(n, 6)), generator.integers(6, size=n)
    rows = [f"e{i}\tg{i}\t{score}\ttest" for i, score in enumerate(human)]
    pairs = read_sts(write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore\tsplit", *rows), "test")
    encode = lookup({f"e{i}": english[i] for i in range(n)} | {f"g{i}": german[i] for i in range(n)})
    cosines = (english * german).sum(1) / np.linalg.norm(english, axis=1) / np.linalg.norm(german, axis=1)
    assert evaluate_sts(encode, pairs).spearman == pytest.approx(
        scipy.stats.spearmanr(cosines, human).statistic, abs=1e-9)


@pytest.mark.parametrize("options, message", [
    ({"teacher": "angles-3"}, "nothing to score"),
    ({"teacher": "angles-3", "pairs": ("p.jsonl",)}, "--teacher=angles-3 needs translations to compare on"),
    ({"parallel": ("missing.tsv",)}, "missing.tsv"),
])
def test_flags_that_do_not_fit(data_dir, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(EvaluateConfig(model="angles-2", **options))
