"""Every published source: the training lines of a small file in its layout, and what the rules leave out."""

import pytest

from data.mine.published.passages import _passage
from data.mine.published.sources import PUBLISHED
from tests.data.mine.published_files import CASES, mined, write_files


def in_order(lines):
    return {name: sorted(values, key=str) for name, values in lines.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lines(case, tmp_path):
    write_files(tmp_path / "in", case.files)
    lines, manifest = mined(case.source, [tmp_path / "in"], tmp_path / "out", **(case.flags or {}))
    if next(source for source in PUBLISHED if source.name == case.source).join:  # its order is that of hashes
        lines, case = in_order(lines), case._replace(lines=in_order(case.lines))
    assert lines == case.lines
    assert {rule: count for rule, count in manifest["left_out"].items() if count} == (case.left_out or {})
    assert "ite " in manifest["licence"] or "ttribute" in manifest["licence"]


@pytest.mark.parametrize("source", PUBLISHED, ids=lambda source: source.name)
def test_every_source_has_a_case(source):
    assert source.name in {case.source for case in CASES}


def test_outputs_have_the_names_of_the_published_mixture():
    """The names in all-MiniLM-L6-v2's data_config.json, beside those of Stack Exchange and Reddit."""
    published = """
        AllNLI NQ-train_pairs PAQ_pairs S2ORC_citation_pairs S2ORC_citation_pairs_abstract
        S2ORC_title_abstract SimpleWiki TriviaQA_pairs WikiAnswers_pairs altlex amazon-qa-train-pairs
        coco_captions codesearchnet eli5_question_answer flickr30k_captions gooaq_pairs
        msmarco-query_passage_negative quora_duplicates_triplets searchQA_question_top5_snippets_merged
        sentence-compression specter_train_triples squad_pairs wikihow yahoo_answers_question_answer
        yahoo_answers_title_answer yahoo_answers_title_question"""
    outputs = {name for case in CASES for name in case.lines if not name.endswith(".tsv")}
    assert outputs - {"paws", "quora_duplicates"} == set(published.split())


@pytest.mark.parametrize("start, most, expected", [
    (0, 10, range(0, 10)), (5, 10, range(0, 10)), (20, 10, range(15, 25)), (39, 10, range(30, 40)),
    (20, 50, range(0, 40))])
def test_a_trivia_passage_has_the_words_around_its_answer(start, most, expected):
    words = [f"w{number}" for number in range(40)]
    words[start] = "Tiber"
    document = f"Tiber\nTiber, not a sentence\n{' '.join(words)}\nThe Tiber again, in a longer line of more words"
    assert _passage(document, ["X", "the tiber", "TIBER"], most) == " ".join(words[number] for number in expected)
    assert _passage(document.replace("Tiber", "Tibers"), ["Tiber"], most) == ""
