"""Texts that say the same: captions, duplicate questions, simplified and shortened sentences, code and its comment."""

import dataclasses
import io
import itertools
import re
from collections.abc import Iterable
from typing import Any, Literal

from data.mine.published.aligned import aligned_lines, sides_of
from data.mine.published.records import (
    BadRecord,
    Layout,
    Records,
    Results,
    csv_table,
    field,
    json_array,
    json_lines,
    json_values,
    one_line,
    pair,
    results_of,
    tab_cells,
    text,
    text_lines,
    texts,
    whole,
)
from data.mine.source import Counts, NoSettings, Unit
from flags import flag

SAME = "the two texts are the same"


def _set(output: str, values: Iterable[str], counts: Counts, what: str) -> Results:
    """{"set": the different texts}, if there are two; else it is counted."""
    different = list(dict.fromkeys(value for value in values if value))
    if len(different) < 2:
        counts[f"{what} with fewer than two different texts"] += 1
    else:
        yield output, {"set": different}


FLICKR30K = Layout("Flickr30k's results_20130124.token, lines of IMAGE.jpg#0<TAB>caption, or results.csv, lines of "
                   "image_name| comment_number| comment", text_lines, r"(\.token|results\.csv)$")
_CAPTION = re.compile(r"(?P<image>[^\t#|]+)(#\d+\t|\| *\d+\|)(?P<caption>.*)")


def mine_flickr30k(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """The set of the captions of each image, which stand one after the other."""
    def convert(line: str) -> Results:
        match = _CAPTION.fullmatch(line)
        if match:
            yield match["image"], whole(match["caption"])
        elif not line.startswith("image_name|"):
            raise BadRecord("is neither IMAGE#NUMBER<TAB>caption nor IMAGE|NUMBER|caption")
    captions = results_of(unit, FLICKR30K, counts, convert)
    for _, group in itertools.groupby(captions, key=lambda item: item[0]):
        yield from _set("flickr30k_captions", (caption for _, caption in group), counts, "image")


COCO = Layout('COCO\'s captions_train2014.json: {"annotations": [{"image_id": .., "caption": ..}]}',
              json_array("annotations"), r"captions_train[^/]*\.json$")


def scatter_coco(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(image id, caption)."""
    return results_of(unit, COCO, counts, lambda record: [
        (str(field(record, "image_id", int)), one_line(text(record, "caption")))])


def join_coco(captions: list[Any], settings: NoSettings, counts: Counts) -> Results:
    """The set of the captions of an image."""
    return _set("coco_captions", captions, counts, "image")


def _quora_rows(file: io.BufferedReader, counts: Counts) -> Records:
    header = file.peek(200).split(b"\n")[0]
    return csv_table("\t" if b"\t" in header else ",")(file, counts)


QUORA = Layout("Quora's quora_duplicate_questions.tsv, train.csv (Kaggle) or train.tsv (GLUE), with the columns "
               "question1, question2 and is_duplicate", _quora_rows, r"(quora[^/]*\.tsv|train\.[ct]sv)$")


def scatter_quora(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(question, [question, other question, whether they are duplicates, whether it is the row's first])."""
    def convert(row: Any) -> Results:
        first, second = one_line(text(row, "question1")), one_line(text(row, "question2"))
        label = text(row, "is_duplicate")
        if label not in ("0", "1"):
            raise BadRecord(f"field 'is_duplicate' is {label[:20]!r}, neither 0 nor 1")
        if not first or not second:
            counts["row with one question only"] += 1
        elif first == second:
            counts[SAME] += 1
        else:
            yield first, [first, second, label == "1", True]
            yield second, [second, first, label == "1", False]
    return results_of(unit, QUORA, counts, convert)


def join_quora(records: list[Any], settings: NoSettings, counts: Counts) -> Results:
    """(question, duplicate) of each row, and {question, its duplicates, its labelled non-duplicates}."""
    question = records[0][0]
    positives = list(dict.fromkeys(other for _, other, same, _ in records if same))
    negatives = list(dict.fromkeys(other for _, other, same, _ in records if not same and other not in positives))
    for other in dict.fromkeys(other for _, other, same, first in records if same and first):
        yield "quora_duplicates", [question, other]
    if positives and negatives:
        yield "quora_duplicates_triplets", {"query": question, "pos": positives, "neg": negatives}
    else:
        counts["question without both a duplicate and a non-duplicate: no line of quora_duplicates_triplets"] += 1


@dataclasses.dataclass(frozen=True)
class WikiAnswersSettings:
    questions_per_set: int = flag(25, "questions that are kept of a cluster, at most; the first", minimum=2)


WIKI_ANSWERS = Layout("the WikiAnswers corpus' part-*.gz: a cluster per line, its questions (q:..) and answers (a:..) "
                      "between tabs", tab_cells())


def mine_wiki_answers(unit: Unit, settings: WikiAnswersSettings, counts: Counts) -> Results:
    """The set of the questions of each cluster."""
    def convert(cells: list[str]) -> Results:
        questions = [whole(cell[2:]) for cell in cells if cell.startswith("q:")]
        if not questions:
            raise BadRecord("has no question, a cell that begins with q:")
        different = list(dict.fromkeys(filter(None, questions)))
        counts["more questions of a cluster than --questions_per_set"] += max(
            0, len(different) - settings.questions_per_set)
        return _set("WikiAnswers_pairs", different[:settings.questions_per_set], counts, "cluster")
    return results_of(unit, WIKI_ANSWERS, counts, convert)


ALTLEX = Layout("AltLex's altlex_train_paraphrases.tsv: a sentence of English Wikipedia, a tab, its Simple Wikipedia "
                "match", tab_cells(2), r"paraphrases.*\.tsv$")


def mine_altlex(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(sentence of English Wikipedia, sentence of Simple Wikipedia)."""
    return results_of(unit, ALTLEX, counts, lambda cells: _different(
        "altlex", one_line(whole(cells[0])), one_line(whole(cells[1])), counts))


def _different(output: str, first: str, second: str, counts: Counts) -> Results:
    if first and first == second:
        counts[SAME] += 1
        return iter(())
    return pair(output, first, second, counts, "empty text")


SIMPLE_WIKI = ("Simple Wikipedia's sentence-aligned.v2.tar.gz, or its normal.aligned and simple.aligned (title, "
               "paragraph, sentence between tabs; equally many lines), or the .src and .dst of WikiAuto")
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_BRACKET = re.compile("|".join(_BRACKETS))


def mine_simple_wiki(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(sentence of English Wikipedia, the same in Simple Wikipedia)."""
    sides = sides_of(unit, [r"(^|/)normal\.aligned$|\.src$", r"(^|/)simple\.aligned$|\.dst$"], SIMPLE_WIKI, counts)
    for lines in aligned_lines(sides, counts):
        normal, simple = [one_line(_BRACKET.sub(lambda match: _BRACKETS[match.group()], line.split("\t")[-1]))
                          for line in lines]
        yield from _different("SimpleWiki", normal, simple, counts)


SENTENCE_COMPRESSION = Layout(
    'sentence-compression\'s sent-comp.train*.json: {"graph": {"sentence": ..}, "compression": {"text": ..}}, one '
    "after the other", json_values, r"train[^/]*\.json(\.gz)?$")


def mine_sentence_compression(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(sentence, its compression)."""
    return results_of(unit, SENTENCE_COMPRESSION, counts, lambda record: _different(
        "sentence-compression", one_line(text(field(record, "graph", dict), "sentence")),
        one_line(text(field(record, "compression", dict), "text")), counts))


@dataclasses.dataclass(frozen=True)
class WikiHowSettings:
    summary_characters: int = flag(150, "the overview's first sentences are taken until they have this many "
                                        "characters; 0: the whole overview", minimum=0)


WIKI_HOW = Layout("WikiHow's wikihowSep.csv (columns overview, headline, text, sectionLabel, title) or wikihowAll.csv "
                  "(headline, title, text)", csv_table(), r"wikihow(Sep|All)\.csv$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def mine_wiki_how(unit: Unit, settings: WikiHowSettings, counts: Counts) -> Results:
    """(title without "How to", the first sentences of the overview, or of wikihowAll.csv the headlines).

    Source: the pairs of github.com/pvl/wikihow_pairs_dataset, which keep one row per overview.
    """
    seen = ""  # the rows of an article follow each other

    def convert(row: Any) -> Results:
        nonlocal seen
        title = re.sub(r"\d+$", "", one_line(text(row, "title")).removeprefix("How to")).strip()
        overview = one_line(text(row, "overview" if "overview" in row else "headline")).replace(".,", ".")
        if overview and overview == seen:
            counts["section of an article whose overview has been taken"] += 1
            return
        seen = overview
        yield from pair("wikihow", title, _first_sentences(overview, settings.summary_characters), counts,
                        "empty title or overview")
    return results_of(unit, WIKI_HOW, counts, convert)


def _first_sentences(overview: str, characters: int) -> str:
    kept = ""
    for sentence in _SENTENCE_END.split(overview) if characters else [overview]:
        if characters and len(kept) >= characters:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


@dataclasses.dataclass(frozen=True)
class CodeSearchNetSettings:
    code_text: Literal["tokens", "code"] = flag(
        "tokens", "tokens: the tokens of the code with spaces between, which hold no comment; code: the source text, "
                  "in which Python's docstring repeats the other text of the pair")


CODE_SEARCH_NET = Layout('CodeSearchNet\'s LANGUAGE.zip, or its LANGUAGE_train_*.jsonl.gz, lines of {"docstring": .., '
                         '"code": .., "code_tokens": [..]}', json_lines, r"_train_\d+\.jsonl(\.gz)?$")


def mine_code_search_net(unit: Unit, settings: CodeSearchNetSettings, counts: Counts) -> Results:
    """(comment, code)."""
    def convert(record: Any) -> Results:
        code = text(record, "code")
        if settings.code_text == "tokens":
            code = " ".join(texts(field(record, "code_tokens", list), "code_tokens"))
        return pair("codesearchnet", text(record, "docstring"), code, counts, "empty comment or code")
    return results_of(unit, CODE_SEARCH_NET, counts, convert)
