"""Published sources on real excerpts of 1 to 20 records, in the layouts in which the data sets were published."""

import pytest

from data.mine.published.sources import PUBLISHED
from tests.data.mine.published_files import mined

# source, inputs below data/raw, flags, {output: (lines, the first line)}, {rule: left out}; texts by their beginnings
EXCERPTS = [
    ("gooaq", ["layouts/gooaq"], {}, {"gooaq_pairs": (3, [
        "who are in the russell group universities?",
        "University of Birmingham. University of Bristol. University of Cambridge. Cardiff"])}, {}),
    ("squad", ["layouts/squad_v2/squad_v2_2.0.0/dev-v2.0.json"], {}, {"squad_pairs": (2, [
        "In what country is Normandy located?", "The Normans (Norman: Nourmands; French: Normands;"])}, {}),
    ("squad", ["squad/squad2_excerpt.json"], {}, {"squad_pairs": (5, ["", "Architecturally, the school has"])},
     {"impossible question": 1}),
    ("squad", ["squad/xquad.en.json"], {}, {"squad_pairs": (1190, [
        "How many points did the Panthers defense surrender?", "The Panthers defense gave up just 308 points"])}, {}),
    ("natural_questions", ["layouts/kilt_tasks/nq_1.0.0"], {}, {"NQ-train_pairs": (5, [
        "how i.met your mother who is the mother", "Tracy McConnell"])}, {}),
    ("eli5", ["layouts/kilt_tasks/eli5_1.0.0"], {}, {"eli5_question_answer": (5, [
        "in football whats the point of wasting the first two plays", "Keep the defense honest, get a feel"])}, {}),
    ("searchqa", ["layouts/search_qa/train_test_val_1.0.0/data_json/train.zip"], {}, {
        "searchQA_question_top5_snippets_merged": (5, [
            "No. 10: FB/LB for Columbia U. in the 1920s; MVP", '+ "question": "\'No. 10: FB/LB for Columbia'])}, {}),
    ("searchqa", ["layouts/search_qa/raw_jeopardy_1.0.0"], {"snippets": 1}, {
        "searchQA_question_top5_snippets_merged": (2, [
            "Of Samos, Davos or Junior, the island on which", "Jun 29, 2016 ... Of Samos, Davos or Junior"])}, {}),
    ("yahoo_answers", ["layouts/yahoo_answers_topics"], {}, {
        "yahoo_answers_title_answer": (5, ["why doesn't an optical mouse", "Optical mice use an LED and a camera"]),
        "yahoo_answers_title_question": (5, ["why doesn't an optical mouse work", "or even on some surfaces?"]),
        "yahoo_answers_question_answer": (5, ["or even on some surfaces?", "Optical mice use an LED"])}, {}),
    ("yahoo_answers", ["layouts/yahoo_answers_qa"], {}, {"yahoo_answers_title_answer": (4, [
        "Why did the U.S Invade Iraq ?", "A small group of politicians believed strongly"])}, {}),
    ("triviaqa", ["layouts/trivia_qa/rc_1.2.0"], {}, {"TriviaQA_pairs": (2, [
        "Which American-born Sinclair won the Nobel Prize", "The Nobel Prize in Literature 1930 was awarded to"])},
     {"question without a text that holds its answer": 1}),
    ("triviaqa", ["triviaqa/triviaqa-sample.tgz"], {}, {"TriviaQA_pairs": (6, [
        "Which city does David Soul come from?", "Soul was born David Richard Solberg in Chicago"])}, {}),
    ("triviaqa", ["layouts/trivia_qa/unfiltered_1.2.0"], {"positives": "answers"}, {"TriviaQA_pairs": (3, [
        "Who was President when the first Peanuts cartoon was published?", "Harry Truman"])}, {}),
    ("msmarco", ["layouts/ms_marco/v1.1_1.1.0/dev_v1.1.json.gz"], {}, {"msmarco-query_passage_negative": (6, [
        "does human hair stop squirrels", "Spread some human hair around your vegetable", "We have been feeding our"])},
     {}),
    ("coco", ["coco/captions_val2017.json.gz"], {}, {"coco_captions": (5000, ["A pizza sits on a plate with one"])},
     {"image with fewer than two different texts": 1}),
    ("simple_wikipedia", ["layouts/wiki_auto/auto_acl_1.0.0"], {}, {"SimpleWiki": (5, [
        "Pterocarpus indicus ( commonly known as Amboyna wood , Malay padauk", "Pterocarpus indicus ( commonly"])}, {}),
    ("wikihow", ["layouts/wikihow"], {}, {"wikihow": (2, [
        "Be an Organized Artist", "Keep related supplies in the same area. Make an effort to clean"])}, {}),
    ("allnli", ["layouts/snli", "layouts/multi_nli"], {}, {"AllNLI": (1, [
        "A person on a horse jumps over a broken down airplane.", "A person is outdoors, on a horse.",
        "A person is at a diner, ordering an omelette."])},
     {"neutral hypothesis": 4, "premise without a contradiction": 3}),
    ("paws", ["layouts/paws/labeled_final_1.1.0"], {}, {"paws": (2, [
        "The NBA season of 1975 -- 76 was the 30th season", "The 1975 -- 76 season of the National"])},
     {"not a paraphrase": 2}),
    ("paws", ["layouts/paws/unlabeled_final_1.1.0"], {}, {"paws": (4, [
        "The film was remade in Telugu", "The film was"])}, {}),
    ("s2orc", ["layouts/s2orc"], {}, {"S2ORC_title_abstract": (2, [
        "Noncoronary and coronary atherothrombotic plaque imaging", "In the future, the use of imaging methods"])},
     {"citation of a paper that is not among the inputs": 88, "paper without a title or an abstract": 3}),
    ("ted", ["layouts/ted_multi"], {"target_languages": ("es", "fr")}, {"ted.tsv": (4, [
        "Amongst all the troubling deficits we struggle with", "De todos los d\u00e9ficits preocupantes", ""])}, {}),
    ("moses", ["layouts/tatoeba"], {"source_language": "ru"}, {
        "Tatoeba.es-pt.tsv": (5, ["\u00a1Intentemos algo!", "Vamos tentar alguma coisa!"]),
        "Tatoeba.fr-ru.tsv": (5, ["", ""])}, {}),
    ("moses", ["layouts/ted_iwlst2013"], {}, {"TED2013.de-en.tsv": (3, [
        "http://www.ted.com/talks/stephen_palumbi", "http://www.ted.com/talks/lang/de/stephen_palumbi"])},
     {"the same text on both sides": 2}),
    ("moses", ["layouts/news_commentary"], {"source_language": "cs"}, {"News-Commentary.ar-cs.tsv": (5, [
        "Zlato za 10", "\u0627\u0644\u0630\u0647\u0628"])}, {}),
    ("moses", ["layouts/opus_wikipedia"], {}, {"Wikipedia.en-ru.tsv": (5, ["Average temperatures on", ""])}, {}),
]


def texts_of(line):
    return next(iter(line.values())) if isinstance(line, dict) else line


@pytest.mark.parametrize("source, inputs, flags, outputs, left_out", EXCERPTS,
                         ids=[f"{source}-{inputs[0].replace('/', '-')}" for source, inputs, *_ in EXCERPTS])
def test_real_excerpts(source, inputs, flags, outputs, left_out, shared_data, tmp_path):
    lines, manifest = mined(source, [shared_data / "raw" / name for name in inputs], tmp_path / "out", **flags)
    counts = {name: count for name, (count, _) in outputs.items()}
    assert {name: len(values) for name, values in lines.items()} == counts
    assert manifest["left_out"] == left_out and not manifest["notes"]
    for name, (_, beginnings) in outputs.items():
        assert any(all(text.startswith(beginning) for text, beginning in zip(texts_of(line), beginnings, strict=False))
                   for line in lines[name][:1 if not joined(source) else None])


def joined(source):
    return next(each for each in PUBLISHED if each.name == source).join is not None


def test_specter_excerpt_has_no_whole_triplet(shared_data, tmp_path):
    """Its metadata are of other papers than its citations."""
    with pytest.raises(ValueError, match="45 left out: triplet of which a paper has no title among the inputs"):
        mined("specter", [shared_data / "raw" / "specter"], tmp_path / "out")
