"""Questions and answers: GOOAQ, SQuAD, Natural Questions, ELI5, SearchQA, Yahoo Answers, Amazon QA.

Each source is one function from a published record to training lines, or a few for a data set of several layouts.
"""

import ast
import dataclasses
import html
import io
import re
from typing import Any, Literal

from data.mine.published.records import (
    BadRecord,
    Layout,
    Records,
    Results,
    csv_rows,
    field,
    first_byte,
    json_array,
    json_lines,
    json_values,
    objects,
    one_line,
    pair,
    results_of,
    text,
    texts,
    whole,
)
from data.mine.source import Counts, NoSettings, Unit
from flags import flag

NO_ANSWER = "question without an answer"


@dataclasses.dataclass(frozen=True)
class GooaqSettings:
    short_answers: bool = flag(False, "also write the pairs of a question and its short answer")


GOOAQ = Layout('GOOAQ\'s gooaq.jsonl, lines of {"question": .., "short_answer": .., "answer": .., "answer_type": ..}',
               json_lines, r"\.jsonl$")


def mine_gooaq(unit: Unit, settings: GooaqSettings, counts: Counts) -> Results:
    """(question, answer); the steps and lists that GOOAQ keeps as the text of a Python list become running text."""
    def convert(record: Any) -> Results:
        question, answer = text(record, "question"), text(record, "answer")
        if answer.startswith("[") and record.get("answer_type") == "collection":
            answer = _listed(answer)
        yield from pair("gooaq_pairs", question, answer, counts, NO_ANSWER)
        if settings.short_answers and (short := text(record, "short_answer")):
            yield from pair("gooaq_pairs", question, short, counts, NO_ANSWER)
    return results_of(unit, GOOAQ, counts, convert)


def _listed(answer: str) -> str:
    try:
        steps = ast.literal_eval(answer)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return answer
    return " ".join(step.strip() for step in steps if isinstance(step, str)) if isinstance(steps, list) else answer


def _squad_questions(file: io.BufferedReader, counts: Counts) -> Records:
    """The questions, each with the paragraph that it is about."""
    for where, article in json_array("data")(file, counts):
        try:
            for number, paragraph in enumerate(objects(article, "paragraphs")):
                for index, asked in enumerate(field(paragraph, "qas", list)):
                    yield f"{where}.paragraphs[{number}].qas[{index}]", {"paragraph": paragraph, "asked": asked}
        except BadRecord as error:
            yield where, error


SQUAD = Layout('SQuAD\'s train-v1.1.json or train-v2.0.json: {"data": [{"paragraphs": [{"context": .., '
               '"qas": [{"question": .., "answers": [..]}]}]}]}', _squad_questions, r"train[^/]*\.json$")


def mine_squad(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(question, the paragraph that answers it); version 2.0's impossible questions are left out."""
    def convert(record: Any) -> Results:
        question, context = text(record["asked"], "question"), text(record["paragraph"], "context")
        if record["asked"].get("is_impossible"):
            counts["impossible question"] += 1
        elif not field(record["asked"], "answers", list):
            counts[NO_ANSWER] += 1
        else:
            yield from pair("squad_pairs", question, context, counts, "empty question or context")
    return results_of(unit, SQUAD, counts, convert)


@dataclasses.dataclass(frozen=True)
class NaturalQuestionsSettings:
    long_answers: Literal["paragraphs", "all"] = flag(
        "paragraphs", "paragraphs: leave out long answers that are tables or lists; all: keep them")


NATURAL_QUESTIONS = Layout(
    'Natural Questions\' v1.0-simplified_simplified-nq-train.jsonl, lines of {"question_text": .., "document_text": '
    '.., "annotations": [..]}, or nq-train-*.jsonl, the same with "document_tokens"; nq-train-kilt.jsonl (KILT), lines '
    'of {"input": .., "output": [{"answer": ..}]}; NQ-open, lines of {"question": .., "answer": [..]}',
    json_lines, r"train.*\.jsonl(\.gz)?$")
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*>$")


def mine_natural_questions(unit: Unit, settings: NaturalQuestionsSettings, counts: Counts) -> Results:
    """(question, the first annotation's long answer if there is one); of KILT and NQ-open: (question, short answer)."""
    def convert(record: Any) -> Results:
        if isinstance(record, dict) and "output" in record:
            answer = next((text(each, "answer") for each in objects(record, "output") if "answer" in each), "")
            return pair("NQ-train_pairs", text(record, "input"), answer, counts, NO_ANSWER)
        if isinstance(record, dict) and "question_text" in record:
            answer = _long_answer(record, settings.long_answers == "paragraphs", counts)
            if answer is None:
                return iter(())
            return pair("NQ-train_pairs", text(record, "question_text"), answer, counts, NO_ANSWER)
        answers = record.get("answer") if isinstance(record, dict) else None
        answer = next(iter(texts(answers, "answer")), "") if isinstance(answers, list) else text(record, "answer")
        return pair("NQ-train_pairs", text(record, "question"), answer, counts, NO_ANSWER)
    return results_of(unit, NATURAL_QUESTIONS, counts, convert)


def _long_answer(record: dict, paragraphs: bool, counts: Counts) -> str | None:
    """The text of the long answer without its tags; None if the rules leave it out, which is counted."""
    spans = [field(each, "long_answer", dict) for each in objects(record, "annotations")]
    span = next((each for each in spans if field(each, "start_token", int) >= 0), None)
    if span is None:
        counts["question without a long answer"] += 1
        return None
    tokens = _tokens(record, span["start_token"], field(span, "end_token", int))
    if paragraphs and tokens[:1] != ["<P>"]:
        counts["long answer that is a table or a list"] += 1
        return None
    return whole(" ".join(token for token in tokens if not _TAG.match(token)))


def _tokens(record: dict, start: int, end: int) -> list[str]:
    if "document_tokens" in record:
        return [field(each, "token", str) for each in field(record, "document_tokens", list)[start:end]]
    return field(record, "document_text", str).split(" ")[start:end]


@dataclasses.dataclass(frozen=True)
class Eli5Settings:
    min_answer_score: int = flag(1, "votes that the best answer has at least", minimum=-1_000_000)


ELI5 = Layout('ELI5\'s training questions, lines of {"title": .., "answers": {"text": [..], "score": [..]}}, or '
              'eli5-train-kilt.jsonl, lines of {"input": .., "output": [{"answer": .., "meta": {"score": ..}}]}',
              json_lines, r"train.*\.jsonl(\.gz)?$")


def mine_eli5(unit: Unit, settings: Eli5Settings, counts: Counts) -> Results:
    """(question, the answer with most votes)."""
    def convert(record: Any) -> Results:
        if isinstance(record, dict) and "output" in record:
            question, outputs = text(record, "input"), objects(record, "output")
            answers = [(field(field(each, "meta", dict), "score", int), text(each, "answer"))
                       for each in outputs if "answer" in each]
        else:
            question, found = text(record, "title"), field(record, "answers", dict)
            answers = list(zip(field(found, "score", list), texts(found.get("text"), "text")))
            if not all(isinstance(score, int) for score, _ in answers):
                raise BadRecord("field 'score' is not a list of integers")
        score, answer = max(answers, key=lambda each: each[0], default=(0, ""))
        if answer and score < settings.min_answer_score:
            counts["best answer has fewer votes than --min_answer_score"] += 1
            return iter(())
        return pair("eli5_question_answer", question, answer, counts, NO_ANSWER)
    return results_of(unit, ELI5, counts, convert)


@dataclasses.dataclass(frozen=True)
class SearchQaSettings:
    snippets: int = flag(5, "snippets of the search results that become pairs with their question, at most; the first",
                         minimum=1)


SEARCH_QA = Layout('SearchQA\'s train.zip, or its files NUMBER-NAME.json: {"question": .., "search_results": '
                   '[{"snippet": ..}]}', json_values, r"\.json$", small_files=True)


def mine_search_qa(unit: Unit, settings: SearchQaSettings, counts: Counts) -> Results:
    """(question, snippet) for each of its first snippets."""
    def convert(record: Any) -> Results:
        question = one_line(text(record, "question"))
        snippets = [one_line(text(each, "snippet")) for each in objects(record, "search_results")]
        snippets = [each for each in dict.fromkeys(snippets) if each][:settings.snippets]
        if not question or not snippets:
            counts["question without a snippet"] += 1
        for snippet in snippets if question else []:
            yield "searchQA_question_top5_snippets_merged", [question, snippet]
    return results_of(unit, SEARCH_QA, counts, convert)


YAHOO = Layout('Yahoo Answers\' train.csv, rows of class, title, question, best answer without a header, its '
               'yahoo_answers_csv.tar.gz, or nfL6.json: [{"question": .., "answer": ..}]',
               lambda file, counts: (json_array() if first_byte(file) == b"[" else csv_rows())(file, counts),
               r"(train\.csv|nfL6\.json)$")
_BREAK = re.compile(r"\\n|<br\s*/?>")


def mine_yahoo_answers(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(title, answer), (title, question body) and (question body, answer)."""
    def convert(record: Any) -> Results:
        if isinstance(record, dict):
            yield from pair("yahoo_answers_title_answer", text(record, "question"), text(record, "answer"), counts,
                            "title or answer is empty")
            return
        if len(texts(record, "row")) != 4 or not record[0].isdigit():
            raise BadRecord("is not a row of a class number, title, question and answer")
        title, question, answer = [_yahoo_text(cell) for cell in record[1:]]
        yield from pair("yahoo_answers_title_answer", title, answer, counts, "title or answer is empty")
        yield from pair("yahoo_answers_title_question", title, question, counts, "title or question body is empty")
        yield from pair("yahoo_answers_question_answer", question, answer, counts, "question body or answer is empty")
    return results_of(unit, YAHOO, counts, convert)


def _yahoo_text(cell: str) -> str:
    return one_line(html.unescape(_BREAK.sub(" ", whole(cell))))


AMAZON_QA = Layout('AmazonQA\'s train-qar.jsonl: lines of {"questionText": .., "answers": [{"answerText": ..}]}',
                   json_lines, r"train.*\.jsonl(\.gz)?$")


def mine_amazon_qa(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(question, answer) for each answer."""
    def convert(record: Any) -> Results:
        question = text(record, "questionText")
        answers = [text(each, "answerText") for each in objects(record, "answers")]
        if not any(answers):
            counts[NO_ANSWER] += 1
        for answer in filter(None, dict.fromkeys(answers)):
            yield from pair("amazon-qa-train-pairs", question, answer, counts, "empty question")
    return results_of(unit, AMAZON_QA, counts, convert)
