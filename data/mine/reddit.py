"""Reddit's comments: a reply and the comment that it answers.

    reddit/reddit_YEAR            [response, context]: a comment and its direct parent
    reddit_contexts/reddit_YEAR   [response, context]: the parent with up to --earlier_turns turns before it, the oldest
                                  first, one per line; only of responses that have an earlier turn

Rules of the public miners (PolyAI's conversational data sets), each a flag: response and parent have 9 to 127
characters and are neither deleted nor removed. Longer earlier turns are cut at a word; a context ends before an earlier
turn that is left out. A thread is in the training split if (1 + md5(thread) % 4096) / 4096 < 0.9, with the thread's id
without "t3_". Lengths are those of the text as it is written: character references resolved, white space folded.

A thread may run over several months, so the comments of all files are joined by thread on disk (data/mine/groups.py).
Of a long comment only the beginning is kept. Of a comment that the dumps have twice, the first counts.
"""

import dataclasses
import datetime
import hashlib
import html
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from data.mine.reading import objects_of
from data.mine.source import Counts, Source, Unit
from flags import flag

BUCKETS = 4096
GONE = ("[deleted]", "[removed]")
MAX_BODY = 100_000  # characters that are looked at; Reddit allows 10,000
BOT_AUTHORS = re.compile(r"automoderator|.*[-_]?bot", re.IGNORECASE)
BOT_TEXTS = re.compile(r"\bI(?:'|&#39;| a)m a bot\b|\bthis action was performed automatically\b", re.IGNORECASE)
_PREFIX = re.compile(r"t[0-9]_")
_LEFT_OUT = {"deleted": "comment that is deleted or removed", "over_18": "comment marked over 18",
             "bot": "comment by a bot"}


@dataclasses.dataclass(frozen=True)
class RedditSettings:
    min_length: int = flag(9, "shortest response and parent, characters", minimum=1)
    max_length: int = flag(127, "longest response and parent, characters; longer earlier turns are cut", minimum=1)
    earlier_turns: int = flag(9, "turns before the parent in reddit_contexts/; 0: those files are not written",
                              minimum=0, maximum=100)
    split: Literal["train", "test", "both"] = flag(
        "train", "threads that are mined. both: the test threads' files are reddit_test/ and reddit_test_contexts/")
    train_share: float = flag(0.9, "share of the threads in the training split", minimum=0, maximum=1)
    deleted: bool = flag(False, "keep comments whose text is [deleted] or [removed]")
    over_18: bool = flag(True, "keep comments marked over_18")
    bots: bool = flag(True, "keep comments by authors whose name ends in bot, by AutoModerator, and those that say "
                            "that a bot wrote them")
    attribution: bool = flag(False, "write the thread, comment and author of each text to NAME.attribution.gz")


class Comment(NamedTuple):
    """What is kept of a comment until its thread is joined."""

    id: str
    parent: str
    thread: str
    text: str  # its first max_length + 1 characters, or fewer if it has fewer
    year: str
    reason: str  # a key of _LEFT_OUT, or ""
    author: str  # only with --attribution


def in_training_split(thread: str, share: float = 0.9) -> bool:
    """Whether a thread, by its id without "t3_", is in the training split: (1 + md5 % 4096) / 4096 < share."""
    bucket = int(hashlib.md5(thread.encode("utf-8", "replace"), usedforsecurity=False).hexdigest(), 16) % BUCKETS
    return (1 + bucket) / BUCKETS < share


def scatter(unit: Unit, settings: RedditSettings, counts: Counts) -> Iterator[tuple[str, Any]]:
    """(thread, comment) of every comment of a file that is in the wanted split."""
    for value in objects_of(unit[0], counts, ("body", "parent_id", "link_id")):
        ids = [value.get("id") or value.get("name"), value["parent_id"], value["link_id"]]
        if not all(isinstance(each, str) and each for each in [*ids, value["body"]]):
            counts["comment without a text, id, parent or thread"] += 1
            continue
        number, parent, thread = (_PREFIX.sub("", each, count=1) for each in ids)
        split = "train" if in_training_split(thread, settings.train_share) else "test"
        if settings.split not in (split, "both"):
            counts[f"comment of a thread in the {split} split"] += 1
            continue
        author = value.get("author") if isinstance(value.get("author"), str) else ""
        yield thread, Comment(
            number, parent, thread, text_of(value["body"])[:settings.max_length + 1], _year(value.get("created_utc")),
            _reason(value, author, settings), author if settings.attribution else "")


def text_of(body: str) -> str:
    """A comment's text: dumps escape <, > and &."""
    return " ".join(html.unescape(body[:MAX_BODY]).split())


def _year(created: Any) -> str:
    """The year of a time in seconds, which some dumps have as a float or a string."""
    try:
        return str(datetime.datetime.fromtimestamp(float(created), datetime.UTC).year)
    except (TypeError, ValueError, OverflowError, OSError):
        return "undated"


def _reason(value: dict, author: str, settings: RedditSettings) -> str:
    """Why a comment is left out, or ""."""
    if not settings.deleted and value["body"].strip() in GONE:
        return "deleted"
    if not settings.over_18 and str(value.get("over_18")).lower() == "true":
        return "over_18"
    if not settings.bots and (BOT_AUTHORS.fullmatch(author) or BOT_TEXTS.search(value["body"])):
        return "bot"
    return ""


def join(records: list[list], settings: RedditSettings, counts: Counts) -> Iterator[tuple]:
    """The training examples of one thread."""
    comments: dict[str, Comment] = {}
    for record in records:
        comment = Comment(*record)
        if comment.id in comments:
            counts["comment that is in the dumps twice"] += 1
        else:
            comments[comment.id] = comment
    thread = records[0][2]
    test = "" if in_training_split(thread, settings.train_share) else "_test"
    for comment in comments.values():
        if comment.parent == thread:
            counts["comment that answers a post, not a comment"] += 1
        elif (parent := comments.get(comment.parent)) is None or parent is comment:
            counts["comment whose parent is not in the dumps"] += 1
        elif _passes(comment, "comment", settings, counts) and _passes(parent, "parent", settings, counts):
            earlier = _earlier(parent, comments, settings)
            by = [{"thread": thread, "comment": each.id, "author": each.author} for each in (comment, parent)]
            by_line = [by] if settings.attribution else []
            yield f"reddit{test}/reddit_{comment.year}", [comment.text, parent.text], *by_line
            if earlier:
                context = "\n".join([*reversed(earlier), parent.text])
                yield f"reddit{test}_contexts/reddit_{comment.year}", [comment.text, context], *by_line


def _passes(comment: Comment, what: str, settings: RedditSettings, counts: Counts) -> bool:
    if comment.reason:
        counts[_LEFT_OUT[comment.reason].replace("comment", what, 1)] += 1
    elif len(comment.text) < settings.min_length:
        counts[f"{what} shorter than --min_length"] += 1
    elif len(comment.text) > settings.max_length:
        counts[f"{what} longer than --max_length"] += 1
    else:
        return True
    return False


def _earlier(comment: Comment, comments: dict[str, Comment], settings: RedditSettings) -> list[str]:
    """The texts of up to --earlier_turns turns before a comment, the latest first."""
    texts, seen = [], {comment.id}
    while len(texts) < settings.earlier_turns:
        comment = comments.get(comment.parent)
        if comment is None or comment.id in seen or comment.reason or not comment.text:
            break
        seen.add(comment.id)
        texts.append(cut(comment.text, settings.max_length))
    return texts


def cut(text: str, length: int) -> str:
    """The text, or as many of its words as `length` characters hold; a longer first word is cut itself."""
    if len(text) <= length:
        return text
    return text[:length + 1].rpartition(" ")[0] or text[:length]


REDDIT = Source(
    name="reddit",
    expects="comments, one JSON object a line: RC_YEAR-MONTH (.zst, .bz2, .xz, .gz, .jsonl), or BigQuery's JSON export",
    licence="the comments are their authors'; Reddit's terms and those of the dump's publisher apply",
    settings=RedditSettings, scatter=scatter, join=join,
    files=r"(?!RS_|.*submissions)(?:RC_.*|.*\.(?:jsonl?|ndjson)|.*\.(?:zst|bz2|xz|gz)|.*-[0-9]{12})")
