"""StackExchange's site dumps: questions, their answers, and the links between duplicate questions.

A question that passes the rules gives, for its site (rules of the public miners, each a flag):

    stackexchange_title_body/SITE                    [title, body]
    stackexchange_Title_Answer/SITE                  [title, best answer]
    stackexchange_TitleBody_Answer/SITE              [title + " " + body, best answer]
    stackexchange_Title_BestAnswer_WorstAnswer/SITE  [title, best answer, worst answer], if their scores are far apart
    stackexchange_duplicate_questions_title_title    [title, title] of a question and the one it was closed for
    stackexchange_duplicate_questions_body_body, ..._title-body_title-body      the same with bodies

The best answer is the one with the highest score, of several the first in the dump. Outputs of sites with few lines
become .../small_stackexchanges. Posts of other types (tag descriptions, moderators' elections) are passed over.

Memory: questions and answers are joined on disk (data/mine/groups.py). The links between duplicates of a site are held
as numbers: about 100 bytes for each, so 100 MB for a million.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from data.mine.reading import damage_named, members
from data.mine.source import Counts, Source, Unit
from data.mine.xml_reading import elements
from flags import flag

QUESTION, ANSWER, DUPLICATE = "1", "2", "3"  # PostTypeId of posts, LinkTypeId of a duplicate
SMALL = "small_stackexchanges"
DUPLICATES = "stackexchange_duplicate_questions_{0}_{0}"
_XML = re.compile(r"(?:(?P<site>.+?)[.-])?(?P<kind>Posts|PostLinks)\.xml(?:\.(?:gz|bz2|xz|zst))?", re.IGNORECASE)
_ARCHIVE = re.compile(r"(?P<site>.+?)(?:-(?P<kind>Posts|PostLinks))?\.(?:7z|zip)", re.IGNORECASE)
# Of stackoverflow.com each table has an archive of its own; those of other tables are not read.
_OTHER_TABLES = r"(?!.*-(?:Badges|Comments|PostHistory|Tags|Users|Votes)\.7z)"
FILES = rf"{_OTHER_TABLES}(?:{_XML.pattern}|{_ARCHIVE.pattern})".replace("?P<site>", "?:").replace("?P<kind>", "?:")


@dataclasses.dataclass(frozen=True)
class StackExchangeSettings:
    min_title: int = flag(20, "shortest title, characters", minimum=1)
    min_body: int = flag(20, "shortest body of a question or answer, characters", minimum=1)
    max_body: int = flag(4096, "longest body of a question or answer, characters", minimum=1)
    min_score: int = flag(0, "lowest score of a question, and of an answer that is taken as the best",
                          minimum=-1_000_000, maximum=1_000_000)
    worst_gap: int = flag(100, "the worst answer is a negative if its score is lower than the best's by this much, or "
                               "is below 0", minimum=1)
    small_site: int = flag(10_000, "an output of fewer lines is merged with other sites'; 0: none is", minimum=0)
    code: bool = flag(True, "code blocks are kept as text; false: they are dropped (code within a sentence stays)")


def site_of(path: Path) -> str:
    """"beer.stackexchange.com" of beer.stackexchange.com.7z, stackoverflow.com-Posts.7z or .../NAME/Posts.xml."""
    for pattern in (_XML, _ARCHIVE):
        if match := pattern.fullmatch(path.name):
            return match["site"] or path.absolute().parent.name or "stackexchange"
    return path.name.split(".")[0]


def units(paths: Sequence[Path]) -> list[Unit]:
    """The files of each site, with the PostLinks that lie beside its posts, whether they are named or not.

    Raises ValueError if two files have the posts of one site.
    """
    sites: dict[str, dict[Path, None]] = {}
    for path in paths:
        files = sites.setdefault(site_of(path), {})
        files[path] = None
        for beside in sorted(path.parent.iterdir()):
            if _table_of(beside) == "postlinks" and site_of(beside) == site_of(path):
                files[beside] = None
    for site, files in sites.items():
        posts = [str(path) for path in files if _table_of(path) == "posts"]
        if len(posts) > 1:
            raise ValueError(f"two dumps of one site, {site}: {', '.join(posts)}: name one of them only, or rename the "
                             "file or folder of one")
    return [tuple(files) for files in sites.values()]


def _table_of(path: Path) -> str:
    """"posts" or "postlinks"; an archive of all tables is one of posts."""
    match = _XML.fullmatch(path.name) or _ARCHIVE.fullmatch(path.name)
    return (match["kind"] or "posts").lower() if match else "posts"


def scatter(unit: Unit, settings: StackExchangeSettings, counts: Counts) -> Iterator[tuple[str, Any]]:
    """(key, record) of each question and answer, by question, and of both sides of each pair of duplicates."""
    site, found = site_of(unit[0]), False
    links = _Links(number for path in unit for pair in _duplicates(path, counts) for number in pair)
    for path in unit:
        for row in _rows(path, "posts", counts):
            found = True
            yield from _records(row, site, links, counts)
    if not found and not counts.notes:
        raise ValueError(f"{', '.join(map(str, unit))}: no post in it: the dump of a site has a Posts.xml with rows")


def _rows(path: Path, table: str, counts: Counts) -> Iterator[Element]:
    """The rows of one table, if the file has it: "posts" or "postlinks", which is also the name of the root element."""

    def is_table(name: str) -> bool:
        match = _XML.fullmatch(Path(name).name)
        return match["kind"].lower() == table if match else table == "posts" and not _ARCHIVE.fullmatch(path.name)

    with damage_named(path, counts):
        for name, chunks in members(path, is_table):
            yield from elements(chunks, path if path.name.startswith(name) else f"{path}/{name}", ("row",), counts,
                                root=table)


def _duplicates(path: Path, counts: Counts) -> Iterator[tuple[int, int]]:
    """(question, the one that it duplicates), by id."""
    for row in _rows(path, "postlinks", counts):
        if row.get("LinkTypeId") == DUPLICATE:
            post, related = _number(row, "PostId"), _number(row, "RelatedPostId")
            if post is None or related is None or post == related:
                counts["link without two ids"] += 1
            else:
                yield post, related


def _number(row: Element, name: str, default: str = "") -> int | None:
    value = row.get(name, default)
    return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else None


class _Links:
    """The pairs of duplicates, found by either id: arrays, whatever their number. (a, b) and (b, a) are one pair."""

    def __init__(self, numbers: Iterator[int]):
        pairs = np.fromiter(numbers, np.int64).reshape(-1, 2)
        first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)[1]
        self.pairs = pairs[np.sort(first)]
        self._places = np.argsort(self.pairs.T.ravel(), kind="stable")
        self._ids = self.pairs.T.ravel()[self._places]

    def of(self, post: int) -> Iterator[tuple[int, int, int]]:
        """(question, the one that it duplicates, which of the two is `post`) of each pair that has it."""
        begin, end = np.searchsorted(self._ids, [post, post + 1])
        for place in self._places[begin:end]:
            side, index = divmod(int(place), len(self.pairs))
            yield int(self.pairs[index, 0]), int(self.pairs[index, 1]), side


def _records(row: Element, site: str, links: _Links, counts: Counts) -> Iterator[tuple[str, Any]]:
    kind = row.get("PostTypeId")
    if kind not in (QUESTION, ANSWER):
        counts["post that is neither question nor answer"] += 1
        return
    post, score = _number(row, "Id"), _number(row, "Score", "0")
    question = post if kind == QUESTION else _number(row, "ParentId")
    if post is None or score is None or question is None:
        counts["post without a whole number as id, score or parent"] += 1
        return
    record = {
        "kind": kind, "site": site, "score": score, "title": row.get("Title", ""), "body": row.get("Body", ""),
        "by": {"post": f"{site}/{'q' if kind == QUESTION else 'a'}/{post}",
               "author": row.get("OwnerUserId") or row.get("OwnerDisplayName", ""),
               "licence": row.get("ContentLicense", "CC BY-SA")},
    }
    yield f"{site}/{question}", record
    if kind == QUESTION:
        for first, second, side in links.of(post):
            yield f"{site}/{first}/{second}", record | {"kind": "duplicate", "side": side}


def join(records: list[dict], settings: StackExchangeSettings, counts: Counts) -> Iterator[tuple]:
    """The training examples of a question and its answers, or of a pair of duplicates."""
    to_text = _html_to_text(settings.code)
    for record in records:
        record["title"] = " ".join(record["title"].split())
        record["body"] = to_text(record["body"])
    if records[0]["kind"] == "duplicate":
        yield from _duplicate_examples(records, settings, counts)
        return
    questions = [record for record in records if record["kind"] == QUESTION]
    answers = [record for record in records if record["kind"] == ANSWER]
    if not questions:
        counts["answer without its question"] += len(answers)
    elif _question_passes(questions[0], settings, counts):
        counts["question that is in the dump twice"] += len(questions) - 1
        yield from _question_examples(questions[0], answers, settings, counts)


@functools.cache
def _html_to_text(keep_code: bool) -> Callable[[str], str]:
    try:
        from data.mine.html_text import HtmlToText
    except ImportError as error:
        raise ValueError('HTML is read with lxml: pip install -e ".[mine]"') from error
    return HtmlToText(keep_code)


def _question_passes(question: dict, settings: StackExchangeSettings, counts: Counts) -> bool:
    if len(question["title"]) < settings.min_title:
        counts["question with a title shorter than --min_title"] += 1
    elif question["score"] < settings.min_score:
        counts["question with a score below --min_score"] += 1
    else:
        return True
    return False


def _body_passes(post: dict, what: str, settings: StackExchangeSettings, counts: Counts) -> bool:
    if len(post["body"]) < settings.min_body:
        counts[f"{what} with a body shorter than --min_body"] += 1
    elif len(post["body"]) > settings.max_body:
        counts[f"{what} with a body longer than --max_body"] += 1
    else:
        return True
    return False


def _question_examples(
    question: dict, answers: list[dict], settings: StackExchangeSettings, counts: Counts
) -> Iterator[tuple]:
    site, title, body = question["site"], question["title"], question["body"]
    has_body = _body_passes(question, "question", settings, counts)
    if has_body:
        yield f"stackexchange_title_body/{site}", [title, body], [question["by"]]
    answers = [answer for answer in answers if _body_passes(answer, "answer", settings, counts)]
    if not answers:
        counts["question without an answer"] += 1
        return
    best = max(answers, key=lambda answer: answer["score"])
    worst = min(answers, key=lambda answer: answer["score"])
    if best["score"] < settings.min_score:
        counts["question whose best answer has a score below --min_score"] += 1
        return
    by = [question["by"], best["by"]]
    yield f"stackexchange_Title_Answer/{site}", [title, best["body"]], by
    if has_body:
        yield f"stackexchange_TitleBody_Answer/{site}", [f"{title} {body}", best["body"]], by
    if worst is not best and (worst["score"] < 0 or best["score"] - worst["score"] >= settings.worst_gap):
        yield (f"stackexchange_Title_BestAnswer_WorstAnswer/{site}", [title, best["body"], worst["body"]],
               [*by, worst["by"]])


def _duplicate_examples(records: list[dict], settings: StackExchangeSettings, counts: Counts) -> Iterator[tuple]:
    sides = {record["side"]: record for record in reversed(records)}
    if len(sides) < 2:
        counts["duplicate of a question that is not in the dump"] += 1
        return
    first, second = sides[0], sides[1]
    unwanted = Counts()  # these questions are counted where their answers are
    if not all(_question_passes(question, settings, unwanted) for question in (first, second)):
        counts["duplicates of which one breaks a rule for questions"] += 1
        return
    by = [first["by"], second["by"]]
    yield DUPLICATES.format("title"), [first["title"], second["title"]], by
    if all(_body_passes(question, "question", settings, unwanted) for question in (first, second)):
        yield DUPLICATES.format("body"), [first["body"], second["body"]], by
        yield DUPLICATES.format("title-body"), [f"{each['title']} {each['body']}" for each in (first, second)], by


def merge(lines: dict[str, int], settings: StackExchangeSettings) -> dict[str, str]:
    """{output of a small site: the output that it becomes a part of}."""
    return {name: f"{name.split('/')[0]}/{SMALL}" for name, count in lines.items()
            if "/" in name and count < settings.small_site}


STACKEXCHANGE = Source(
    name="stackexchange",
    expects="dump of a site: SITE.7z, or Posts.xml (.gz, .bz2, .xz, .zst) with PostLinks.xml beside it; many sites too",
    licence="CC BY-SA (2.5, 3.0 or 4.0, by the date of the post): name the site, link to the post, name its author. "
            "NAME.attribution.gz has them, one line per line of NAME.jsonl.gz",
    settings=StackExchangeSettings, scatter=scatter, join=join, files=FILES, units=units, merge=merge)
