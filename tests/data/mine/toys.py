"""Two toy sources for tests of the framework: questions with their answer, and lines that share a word."""

import dataclasses

from data.mine.reading import objects_of
from data.mine.source import Source
from flags import flag


@dataclasses.dataclass(frozen=True)
class ToySettings:
    min_length: int = flag(2, "shortest text, characters", minimum=0)


def mine_pairs(unit, settings, counts):
    for value in objects_of(unit[0], counts, ("q", "a")):
        if len(value["q"]) < settings.min_length:
            counts["question shorter than --min_length"] += 1
        else:
            yield f"pairs/{value.get('site', 'all')}", [value["q"], value["a"]]


def scatter_words(unit, settings, counts):
    for value in objects_of(unit[0], counts, ("q", "a")):
        yield value["a"], value["q"]


def join_words(records, settings, counts):
    if len(records) < 2:
        counts["answer of one question"] += 1
    else:
        yield "sets", {"set": records}


PAIRS = Source("pairs", "questions.jsonl", "CC0", ToySettings, mine=mine_pairs, files=r".*\.jsonl(\.\w+)?")
WORDS = Source("words", "questions.jsonl", "CC0", ToySettings, scatter=scatter_words, join=join_words)
