"""What is left of an example without some of its texts, when two examples are the same, and the line it is written as.

A set loses only the texts that go, and a list of positives or negatives too. The example goes as a whole if its query
goes, or a text of a pair or triplet, or if a set has fewer than two texts left, or a list no positive, or no negative
where the file has some.
"""

import json
import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from data.examples import RawExample
from data.shards import text_id

LINE_BITS, POSITION_BITS = 36, 14
MOST_DATASETS, MOST_POSITIONS = 1 << 64 - LINE_BITS - POSITION_BITS, 1 << POSITION_BITS


class Place(NamedTuple):
    """Where a text is. The order of places is that in which data sets win."""

    rank: int  # of the data set
    line: int  # or row; from 1
    position: int  # of the text in its example

    @property
    def number(self) -> int:
        return (self.rank << LINE_BITS | self.line) << POSITION_BITS | self.position

    @classmethod
    def of(cls, number: int) -> "Place":
        line = number >> POSITION_BITS
        return cls(line >> LINE_BITS, line & (1 << LINE_BITS) - 1, number & MOST_POSITIONS - 1)


def without(example: RawExample, gone: Collection[int]) -> tuple[RawExample, list[int]] | None:
    """(the example without the texts at these positions, the positions that are left), or None if nothing is left."""
    kept = [position for position in range(len(example.texts)) if position not in gone]
    positives = sum(1 <= position <= example.num_positives for position in kept)
    if example.kind == "set":
        if len(kept) < 2:
            return None
        positives = len(kept) - 1
    elif example.kind == "lists":
        if 0 not in kept or not positives or (example.has_negatives and len(kept) == 1 + positives):
            return None
    elif len(kept) < len(example.texts):
        return None
    scores = example.scores and tuple(example.scores[position - 1] for position in kept if position)
    return example._replace(texts=tuple(example.texts[position] for position in kept), num_positives=positives,
                            scores=scores), kept


def example_id(example: RawExample, ids: list[int], keep_reversed: bool) -> int:
    """A hash that two examples share if they are the same: of one query, the same positives, the same negatives.

    Query and a single positive may change places, unless keep_reversed is set. A set has no order; one of two texts is
    a pair. How often a text stands in an example does not count, nor do scores.

    ids: of the texts.
    """
    query, positives, negatives = ids[0], ids[1 : 1 + example.num_positives], ids[1 + example.num_positives :]
    documents = sorted(set(positives))
    if example.kind == "set" and (keep_reversed or len(set(ids)) > 2):
        first = [0, *sorted(set(ids))]
    elif len(documents) == 1 and not keep_reversed:
        first = sorted([query, *documents])
    else:
        first = [query, *documents]
    return text_id(f"{first} {sorted(set(negatives))}")


def distinct_texts(ids: list[int]) -> Iterator[tuple[int, int]]:
    """(position, id) of each text of an example, the first of those with one id."""
    first: dict[int, int] = {}
    for position, each in enumerate(ids):
        first.setdefault(each, position)
    yield from ((position, each) for each, position in first.items())


def line_of(example: RawExample) -> bytes:
    """The line of a .jsonl file that is read as this example.

    A pair is an object, because a list whose second texts are few would be taken for one with a column of labels.
    """
    query, *others = example.texts
    value: dict[str, Any] = {"set" if example.kind == "set" else "texts": list(example.texts)}
    if example.kind == "lists":
        count = example.num_positives
        value = {"query": query, "pos": others[:count]} | ({"neg": others[count:]} if example.has_negatives else {})
        scores = example.scores or ()
        value |= {key: list(of) for key, of in (("pos_scores", scores[:count]), ("neg_scores", scores[count:]))
                  if not all(map(math.isnan, of))}
    return json.dumps(value, ensure_ascii=False).encode()
