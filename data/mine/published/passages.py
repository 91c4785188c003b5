"""Questions whose passages lie elsewhere: TriviaQA's evidence, PAQ's Wikipedia passages, MS MARCO's collection."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from data.mine.published import json_stream
from data.mine.published.joining import JoinSettings, grouped
from data.mine.published.records import (
    BadRecord,
    Layout,
    Results,
    csv_table,
    field,
    files_in,
    first_byte,
    json_array,
    json_lines,
    objects,
    one_line,
    pair,
    results_of,
    tab_cells,
    text,
    texts,
    whole,
)
from data.mine.reading import damage_named, plain_name
from data.mine.source import Counts, Unit
from flags import flag


def together(paths: Sequence[Path]) -> list[Unit]:
    """All input files are one unit: they refer to each other."""
    return [tuple(paths)]


@dataclasses.dataclass(frozen=True)
class TriviaQaSettings(JoinSettings):
    positives: Literal["evidence", "descriptions", "answers"] = flag(
        "evidence", "text that answers a question. evidence: the passage of its best evidence file that holds the "
                    "answer; descriptions: the same of the search results' descriptions; answers: the answer itself")
    passage_words: int = flag(100, "words that an evidence passage has at most", minimum=10)


TRIVIA_QA = Layout('TriviaQA\'s triviaqa-rc.tar.gz, or its *-train.json, {"Data": [{"Question": .., "Answer": '
                   '{"Value": .., "Aliases": [..]}, "SearchResults": [{"Filename": ..}]}]}, with its folder evidence',
                   json_array("Data"), r"train\.json$")
_EVIDENCE = r"(^|/)evidence/.*\.txt$"
_MIN_WORDS = 10  # of an evidence passage: headings and menus have fewer
_NO_RANK = 1 << 30


def scatter_trivia_qa(unit: Unit, settings: TriviaQaSettings, counts: Counts) -> Results:
    """(question id, [rank of the text, question, text]); a text of "" stands for the question alone."""
    evidence = [path for path in unit if not plain_name(path).endswith(".json")]
    asked = [path for path in unit if not plain_name(path).endswith(".txt")]
    if not asked:
        raise ValueError(f"{unit[0]} and the other inputs hold no questions; expected {TRIVIA_QA.expected}")
    if settings.positives != "evidence":
        yield from results_of(asked, TRIVIA_QA, counts, lambda record: _trivia_texts(record, settings.positives))
        return
    missing = True
    for group in grouped(_evidence_and_questions(evidence, asked, counts), settings, counts):
        documents = [record[1] for record in group if record[0] == "document"]
        missing = missing and not documents
        for kind, *values in group:
            if kind == "question":
                yield values[0], [_NO_RANK, values[1], ""]
            elif kind == "reference" and documents:
                question_id, question, rank, aliases = values
                if passage := _passage(documents[0], aliases, settings.passage_words):
                    yield question_id, [rank, question, passage]
    if missing:
        raise ValueError("no file of the inputs is TriviaQA's evidence (evidence/**/*.txt): give triviaqa-rc.tar.gz or "
                         "the folder it unpacks to, or set --positives=descriptions or --positives=answers")


def join_trivia_qa(records: list[Any], settings: TriviaQaSettings, counts: Counts) -> Results:
    """(question, the best of its texts)."""
    rank, question, answer = min(records, key=lambda record: record[0])
    if rank == _NO_RANK:
        counts["question without a text that holds its answer"] += 1
        return
    yield from pair("TriviaQA_pairs", question, answer, counts, "empty question or answer")


def _answers(record: Any) -> tuple[str, list[str]]:
    answer = field(record, "Answer", dict)
    value = text(answer, "Value")
    return value, [value, *texts(answer.get("Aliases", []), "Aliases")]


def _trivia_texts(record: Any, positives: str) -> Results:
    question, number = text(record, "Question"), field(record, "QuestionId", str)
    if "Answer" not in record and "SearchResults" in record:  # the files of the test set
        raise BadRecord("has no field 'Answer': is it a file without answers?")
    value, aliases = _answers(record)
    yield number, [_NO_RANK, question, ""]
    if positives == "answers":
        yield number, [0, question, value]
        return
    for rank, found in enumerate(objects(record, "SearchResults")):
        description = one_line(text(found, "Description")) if "Description" in found else ""
        if _place(description, aliases) is not None:
            yield number, [rank, question, description]


def _evidence_and_questions(evidence: Sequence[Path], asked: Sequence[Path], counts: Counts) -> Iterator[tuple]:
    """(file of evidence, ["document", its text] or ["reference", question id, question, rank, aliases])."""
    for path in evidence:
        with damage_named(path, counts):
            for name, file in files_in(path, _EVIDENCE):
                yield name.replace("\\", "/").rpartition("evidence/")[2], [
                    "document", file.read(1 << 24).decode("utf-8", "replace")]
    yield from results_of(asked, TRIVIA_QA, counts, _references)


def _references(record: Any) -> Iterator[tuple[str, list]]:
    question, number = text(record, "Question"), field(record, "QuestionId", str)
    _, aliases = _answers(record)
    yield f"question {number}", ["question", number, question]
    places = [("web", found) for found in objects(record, "SearchResults", [])]
    places += [("wikipedia", found) for found in objects(record, "EntityPages", [])]
    for rank, (folder, found) in enumerate(places):
        yield f"{folder}/{field(found, 'Filename', str)}", ["reference", number, question, rank, aliases]


def _place(passage: str, aliases: list[str]) -> int | None:
    """Where one of the answers stands as words of its own."""
    known = "|".join(re.escape(alias) for alias in aliases if len(alias) > 1)
    match = re.search(rf"(?<!\w)(?:{known})(?!\w)", passage, re.IGNORECASE) if known else None
    return match.start() if match else None


def _passage(document: str, aliases: list[str], most: int) -> str:
    """The first paragraph that holds an answer, cut to `most` words around it; "" if there is none."""
    for paragraph in document.split("\n"):
        words = paragraph.split()
        if len(words) < _MIN_WORDS or (place := _place(paragraph, aliases)) is None:
            continue
        before = len(paragraph[:place].split())
        start = max(0, min(before - most // 2, len(words) - most))
        return " ".join(words[start:start + most])
    return ""


@dataclasses.dataclass(frozen=True)
class PaqSettings:
    positives: Literal["passages", "answers"] = flag(
        "passages", "text that answers a question. passages: the Wikipedia passage that it was made from (needs "
                    "PAQ.metadata.jsonl and psgs_w100.tsv); answers: the short answer")


PAQ = Layout('PAQ.metadata.jsonl, lines of {"question": .., "answer": .., "answers": [{"passage_id": ..}]}, with '
             'psgs_w100.tsv (columns id, text, title); or PAQ.filtered.jsonl, lines of {"question": .., "answer": '
             "[..]}",
             lambda file, counts: (json_lines if first_byte(file) == b"{" else csv_table("\t"))(file, counts),
             r"\.(jsonl|tsv)(\.gz)?$")
_NO_PASSAGE = "question whose passage is not among the inputs (give psgs_w100.tsv too, or set --positives=answers)"


def scatter_paq(unit: Unit, settings: PaqSettings, counts: Counts) -> Results:
    """(passage id, ["passage", text] or ["question", question]), or (question, ["pair", question, answer])."""
    def convert(record: Any) -> Results:
        if isinstance(record, dict) and "question" not in record:
            if settings.positives == "passages":
                yield text(record, "id"), ["passage", text(record, "text")]
            return
        question = text(record, "question")
        if settings.positives == "answers":
            answer = record.get("answer")
            short = next(iter(texts(answer, "answer")), "") if isinstance(answer, list) else text(record, "answer")
            yield question, ["pair", question, short]
            return
        if "answers" not in record:
            raise BadRecord("has no field 'answers' with passage ids (set --positives=answers, or give "
                            "PAQ.metadata.jsonl)")
        passages = [str(each["passage_id"]) for each in objects(record, "answers")
                    if isinstance(each.get("passage_id"), str | int)]
        if not passages:
            raise BadRecord("has no passage id in its field 'answers'")
        yield passages[0], ["question", question]
    return results_of(unit, PAQ, counts, convert)


def join_paq(records: list[Any], settings: PaqSettings, counts: Counts) -> Results:
    """(question, passage) or (question, answer)."""
    passage = next((record[1] for record in records if record[0] == "passage"), None)
    for kind, *values in records:
        if kind == "pair":
            yield from pair("PAQ_pairs", values[0], values[1], counts, "empty question or answer")
        elif kind == "question" and passage is None:
            counts[_NO_PASSAGE] += 1
        elif kind == "question":
            yield from pair("PAQ_pairs", values[0], passage, counts, "empty question or passage")


@dataclasses.dataclass(frozen=True)
class MsMarcoSettings:
    triplets_per_query: int = flag(20, "triplets that a query gives at most, the first; 0: all. Of ready triplets of "
                                       "texts (triples.train.small.tsv) all are taken", minimum=0)


@dataclasses.dataclass(frozen=True)
class MsMarcoIdSettings(JoinSettings, MsMarcoSettings):
    pass


MS_MARCO_OUTPUT = "msmarco-query_passage_negative"
MS_MARCO = Layout('MS MARCO\'s triples.train.small.tsv (query, passage, negative between tabs) or train_v1.1.json, '
                  'lines of {"query": .., "passages": [{"is_selected": .., "passage_text": ..}]}',
                  lambda file, counts: (json_lines if first_byte(file) == b"{" else tab_cells(3))(file, counts),
                  r"train.*\.(tsv|json)(\.gz)?$")


def mine_ms_marco(unit: Unit, settings: MsMarcoSettings, counts: Counts) -> Results:
    """(query, passage, negative)."""
    def convert(record: Any) -> Results:
        if isinstance(record, list):
            cells = texts(record, "line")
            if len(cells) != 3:
                raise BadRecord(f"has {len(cells)} texts, not a query, a passage and a negative")
            if all(cell.isdigit() for cell in cells):
                raise BadRecord("has ids, not texts (they are read by the source msmarco_ids)")
            return _triplet(cells, counts)
        return _selected(text(record, "query"), objects(record, "passages"), settings, counts)
    return results_of(unit, MS_MARCO, counts, convert)


def _triplet(cells: list[str], counts: Counts) -> Results:
    if all(cells):
        yield MS_MARCO_OUTPUT, cells
    else:
        counts["empty text"] += 1


def _selected(query: str, passages: list[Any], settings: MsMarcoSettings, counts: Counts) -> Results:
    chosen: dict[bool, list[str]] = {True: [], False: []}
    for passage in passages:
        chosen[field(passage, "is_selected", int) == 1].append(text(passage, "passage_text"))
    triplets = [[query, positive, negative] for positive in chosen[True] for negative in chosen[False]]
    if not triplets:
        counts["query without a selected passage" if not chosen[True] else "query without another passage"] += 1
    for cells in triplets[:settings.triplets_per_query or None]:
        yield from _triplet(cells, counts)


MS_MARCO_COLUMNS = 'MS MARCO\'s train_v2.1.json: {"query": {"ROW": ..}, "passages": {"ROW": [..]}, ..}'


def _column(name: str) -> Layout:
    """The reader of one column, whose records are [row, value]."""
    return Layout(MS_MARCO_COLUMNS, lambda file, counts: (
        (f"{name}.{row}", [row, value]) for row, value in json_stream.members(file, name)), r"train.*\.json(\.gz)?$")


def scatter_ms_marco_columns(unit: Unit, settings: MsMarcoSettings, counts: Counts) -> Results:
    """(file and row, ["query", text] or ["passages", list])."""
    for name in ("query", "passages"):
        for path in unit:
            yield from results_of([path], _column(name), counts,
                                  lambda record, name=name, path=path: [(f"{path} {record[0]}", [name, record[1]])])


def join_ms_marco_columns(records: list[Any], settings: MsMarcoSettings, counts: Counts) -> Results:
    """(query, passage, negative)."""
    row = dict(records)
    try:
        yield from _selected(text(row, "query"), objects(row, "passages"), settings, counts)
    except BadRecord:
        counts["row without a query, or with passages of another shape"] += 1


MS_MARCO_IDS = Layout("MS MARCO's qidpidtriples.train.full.2.tsv (three ids between tabs), queries.train.tsv (id, "
                      "query) and collection.tsv (id, passage)", tab_cells(), r"(qidpidtriples|queries\.train|"
                      r"collection).*\.tsv(\.gz)?$")


def scatter_ms_marco_ids(unit: Unit, settings: MsMarcoIdSettings, counts: Counts) -> Results:
    """(number of the triplet, [0, 1 or 2, the text of its query, passage or negative])."""
    for group in grouped(_ids_and_texts(unit, settings, counts), settings, counts):
        found = next((record[1] for record in group if record[0] == "text"), "")
        for kind, *values in group:
            if kind == "reference":
                number, slot = values
                yield str(number), [slot, found]


def _ids_and_texts(unit: Unit, settings: MsMarcoIdSettings, counts: Counts) -> Iterator[tuple[str, list]]:
    seen: collections.Counter[str] = collections.Counter()  # triplets by query: 100 bytes for each query
    numbers = iter(range(1 << 62))
    for path in unit:
        kind = "query" if "queries" in path.name else "passage"

        def convert(cells: list[str], kind: str = kind) -> Results:
            if len(cells) == 2 and cells[0].isdigit():
                yield f"{kind} {cells[0]}", ["text", whole(cells[1])]
            elif len(cells) != 3 or not all(cell.isdigit() for cell in cells):
                raise BadRecord(f"has {len(cells)} columns: neither an id and a text nor three ids")
            else:
                seen[cells[0]] += 1
                if settings.triplets_per_query and seen[cells[0]] > settings.triplets_per_query:
                    counts["more triplets of a query than --triplets_per_query"] += 1
                    return
                number = next(numbers)
                for slot, cell in enumerate(cells):
                    yield f"{'passage' if slot else 'query'} {cell}", ["reference", number, slot]
        yield from results_of([path], MS_MARCO_IDS, counts, convert)


def join_ms_marco_ids(records: list[Any], settings: MsMarcoIdSettings, counts: Counts) -> Results:
    """(query, passage, negative)."""
    cells = [found for _, found in sorted(records)]
    if len(cells) == 3 and all(cells):
        yield MS_MARCO_OUTPUT, cells
    else:
        counts["triplet of which a query or passage is not among the inputs"] += 1
