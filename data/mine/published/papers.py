"""Scientific papers: SPECTER's citation triplets, titles, abstracts and citations of S2ORC."""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

from data.mine.published import json_stream
from data.mine.published.joining import JoinSettings, grouped
from data.mine.published.records import (
    BadRecord,
    Layout,
    Records,
    Results,
    field,
    first_byte,
    json_lines,
    one_line,
    results_of,
    text,
    text_lines,
    texts,
)
from data.mine.reading import plain_name
from data.mine.source import Counts, Unit
from flags import flag


@dataclasses.dataclass(frozen=True)
class SpecterSettings(JoinSettings):
    triplets_per_query: int = flag(5, "triplets of a query paper, at most; the first of the papers that it cites",
                                   minimum=1)


def _papers(file: io.BufferedReader, counts: Counts) -> Records:
    if first_byte(file) != b"{":
        yield from text_lines(file, counts)
        return
    for key, value in json_stream.members(file):
        yield f"paper {key}", [key, value]


SPECTER = Layout('SPECTER\'s data.json {"QUERY": {"CITED": {"count": 5}}} and metadata.json {"PAPER": {"title": ..}}, '
                 "and, to take some query papers only, train.txt with their ids", _papers,
                 r"(^|/)(data\.json|metadata\.json|train\.txt)$")
CITED, HARD_NEGATIVE = 5, 1  # the values of "count"


def scatter_specter(unit: Unit, settings: SpecterSettings, counts: Counts) -> Results:
    """(query paper and number of the triplet, [0, 1 or 2, title of its query, positive or negative])."""
    for group in grouped(_citations_and_titles(unit, settings, counts), settings, counts):
        title = next((record[1] for record in group if record[0] == "title"), "")
        for kind, *values in group:
            if kind == "reference":
                key, slot = values
                yield key, [slot, title]


def join_specter(records: list[Any], settings: SpecterSettings, counts: Counts) -> Results:
    """(title, title of a cited paper, title of a paper that is cited by one but not by the query paper)."""
    titles = [title for _, title in sorted(records)]
    if len(titles) == 3 and all(titles):
        yield "specter_train_triples", titles
    else:
        counts["triplet of which a paper has no title among the inputs"] += 1


def _citations_and_titles(unit: Unit, settings: SpecterSettings, counts: Counts) -> Iterator[tuple[str, list]]:
    lists = [path for path in unit if plain_name(path).endswith(".txt")]
    papers = [path for path in unit if path not in lists]
    if not papers:
        raise ValueError(f"the inputs are lists of ids only; expected {SPECTER.expected}")
    chosen = set(results_of(lists, SPECTER, counts, _id)) if lists else None
    yield from results_of(papers, SPECTER, counts, lambda record: _of_paper(record, chosen, settings, counts))


def _id(line: Any) -> Iterator[str]:
    if not isinstance(line, str):
        raise BadRecord("is JSON, not an id")
    yield line.strip()


def _of_paper(record: Any, chosen: set | None, settings: SpecterSettings, counts: Counts) -> Iterator[tuple[str, list]]:
    if not isinstance(record, list):
        raise BadRecord("is a line of text, not JSON")
    paper, value = record
    if isinstance(value, dict) and "title" in value:
        yield paper, ["title", one_line(text(value, "title"))]
        return
    if not isinstance(value, dict):
        raise BadRecord(f"is a {type(value).__name__}, neither cited papers nor a title")
    if chosen is not None and paper not in chosen:
        counts["query paper that is not in the list of ids"] += 1
        return
    cited = {other: field(link, "count", int) for other, link in value.items()}
    positives = [other for other, count in cited.items() if count == CITED]
    negatives = [other for other, count in cited.items() if count == HARD_NEGATIVE]
    if not positives or not negatives:
        counts["query paper without a cited paper or without a hard negative"] += 1
        return
    for number, positive in enumerate(positives[:settings.triplets_per_query]):
        for slot, other in enumerate((paper, positive, negatives[number % len(negatives)])):
            yield other, ["reference", f"{paper} {number}", slot]


@dataclasses.dataclass(frozen=True)
class S2orcSettings:
    citation_titles: bool = flag(True, "write S2ORC_citation_pairs: title of a paper, title of one that it cites")
    citation_abstracts: bool = flag(True, "write S2ORC_citation_pairs_abstract: the same with abstracts")


S2ORC = Layout('S2ORC\'s metadata_*.jsonl.gz, lines of {"title": .., "abstract": .., "paper_id": .., '
               '"outbound_citations": [..]}, or Semantic Scholar\'s s2-corpus-*.gz, lines of {"title": .., '
               '"paperAbstract": .., "id": .., "outCitations": [..]}',
               json_lines, r"(\.jsonl|s2-corpus[^/]*)(\.gz)?$")


def scatter_s2orc(unit: Unit, settings: S2orcSettings, counts: Counts) -> Results:
    """(paper id, ["paper", title, abstract] or ["cited by", title, abstract of the citing paper])."""
    def convert(record: Any) -> Results:
        number, title = _either(record, "id", "paper_id", "corpusid"), one_line(text(record, "title"))
        abstract = one_line(text(record, "paperAbstract" if "paperAbstract" in record else "abstract"))
        yield number, ["paper", title, abstract]
        if settings.citation_titles or settings.citation_abstracts:
            cited = next((record[key] for key in ("outCitations", "outbound_citations") if record.get(key)), [])
            citing = [title if settings.citation_titles else "", abstract if settings.citation_abstracts else ""]
            for other in texts(cited, "outbound citations") if any(citing) else []:
                yield other, ["cited by", *citing]
    return results_of(unit, S2ORC, counts, convert)


def _either(record: Any, *names: str) -> str:
    found = [record[name] for name in names if name in record] if isinstance(record, dict) else []
    if not found or not isinstance(found[0], str | int):
        raise BadRecord(f"has no id in a field {', '.join(map(repr, names))}")
    return str(found[0])


def join_s2orc(records: list[Any], settings: S2orcSettings, counts: Counts) -> Results:
    """(title, abstract), and (title, title) and (abstract, abstract) of a citing and a cited paper."""
    paper = next((record[1:] for record in records if record[0] == "paper"), None)
    if paper is None:
        counts["citation of a paper that is not among the inputs"] += len(records)
        return
    title, abstract = paper
    if title and abstract:
        yield "S2ORC_title_abstract", [title, abstract]
    else:
        counts["paper without a title or an abstract"] += 1
    for kind, *citing in records:
        if kind != "cited by":
            continue
        if settings.citation_titles:
            yield from _cited("S2ORC_citation_pairs", citing[0], title, counts, "title")
        if settings.citation_abstracts:
            yield from _cited("S2ORC_citation_pairs_abstract", citing[1], abstract, counts, "abstract")


def _cited(output: str, citing: str, cited: str, counts: Counts, what: str) -> Results:
    if citing and cited and citing != cited:
        yield output, [citing, cited]
    else:
        counts[f"citation without two different {what}s"] += 1
