"""The three passes over the data sets, each in parts that many processes do in any order.

    scan    reads a data set, finds the texts that are in the evaluation sets, and writes (id, place) of what is left
    join    reads a range of ids of all data sets, and writes (place, place of the winner) of all but the first
    rewrite reads the data set again and writes what is kept, and what went where for the report
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data.columns import Columns
from data.examples import RawExample
from data.first_block import named_reasons
from data.mine import reading
from data.mine.filter.evaluation_index import HIT, EvaluationIndex
from data.mine.filter.examples import MOST_POSITIONS, Place, distinct_texts, example_id, line_of, without
from data.mine.filter.sorting import Runs, merged, repeated, runs_in
from data.mine.filter.words import normal_id, words_of
from data.mine.source import Counts
from data.mine.writing import LineFiles, new_part, write_summary
from data.shards import text_id
from data.source_file import SourceFile
from data.writer import NAMED_BAD_LINES, blocks_of, parse_block

IDS, REPEATED, HITS, OUTPUT = "ids", "repeated", "hits", "output.jsonl.gz"
REPORTED = 3  # examples in the report, of each data set and each place where its texts were found
SHOWN_CHARACTERS = 300
HITS_AT_ONCE = 4096


class Dataset(NamedTuple):
    """A data set, and how its file is read."""

    rank: int  # of two data sets with the same example the one of the lower rank keeps it
    name: str
    path: Path
    columns: Columns | None
    tsv: Literal["texts", "parallel"]
    tsv_header: bool
    max_bad_share: float

    def source(self) -> SourceFile:
        return SourceFile(self.path, self.tsv_header, self.tsv, self.columns)


class Rules(NamedTuple):
    """What decides which examples are kept."""

    duplicates: Literal["examples", "texts", "none"]
    match: Literal["normalized", "exact"]
    keep_reversed: bool
    ngram_words: int
    ngram_share: float

    def open_index(self, folder: Path | None) -> EvaluationIndex:
        return EvaluationIndex(folder, self.ngram_words, self.ngram_share)

    def ids(self, texts: Iterable[str]) -> list[int]:
        """Of each text a number that equal texts share."""
        return list(map(text_id, texts) if self.match == "exact" else (normal_id(words_of(text)) for text in texts))


def _blocks(dataset: Dataset) -> Iterator[tuple[list[tuple[int, RawExample]], list[tuple[int, str]]]]:
    """((line, example) of the good lines, (line, reason) of the bad ones) of each block of a data set."""
    source = dataset.source()
    for block in blocks_of(source, 1):
        reading.progress.at(dataset.path, source.bytes_read)
        yield parse_block(block)


def scan(dataset: Dataset, rules: Rules, index_folder: Path | None, memory: int, part: Path) -> None:
    """Writes the ids of a data set's examples or texts, and which of its texts are in the evaluation sets.

    Raises ValueError if more lines are bad than is allowed.
    """
    index = rules.open_index(index_folder)
    lines, reasons, first_bad = 0, Counts(), []
    with new_part(part) as temporary:
        runs = Runs(temporary, IDS, memory)
        with open(temporary / HITS, "wb") as file:
            for numbered, bad in _blocks(dataset):
                lines += len(numbered) + len(bad)
                reasons.update(reason for _, reason in bad)
                first_bad += bad[: NAMED_BAD_LINES - len(first_bad)]
                hits, ids = _block_hits(numbered, rules, index)
                file.write(hits.tobytes())
                if rules.duplicates != "none":
                    rows = list(_ids_and_places(dataset, numbered, ids, hits, rules))
                    runs.add(*(np.array(column, np.uint64) for column in (zip(*rows) if rows else ((), ()))))
        runs.flush()
        bad_lines = reasons.total()
        if bad_lines == lines:
            raise ValueError(f"{dataset.path}: no example in {lines:,} lines: "
                             f"{named_reasons(dataset.path, first_bad) or 'all of them are blank, or a header'}")
        if bad_lines > dataset.max_bad_share * lines:
            raise ValueError(f"{dataset.path}: {bad_lines:,} of {lines:,} lines are bad, more than --max_bad_share="
                             f"{dataset.max_bad_share:g} allows: {named_reasons(dataset.path, first_bad)}")
        write_summary(temporary, reasons, lines=lines)


def _block_hits(
    numbered: list[tuple[int, RawExample]], rules: Rules, index: EvaluationIndex
) -> tuple[np.ndarray, list[int]]:
    """([hits] of HIT, in the order of lines and positions; the ids of all texts, one example after the other)."""
    places = [(line, position) for line, example in numbered for position in range(len(example.texts))]
    words = [words_of(text) for _, example in numbered for text in example.texts]
    ids = list(map(normal_id, words))
    found = index.hits(words, np.array(ids, np.uint64))
    if rules.match == "exact":
        ids = rules.ids(text for _, example in numbered for text in example.texts)
    return np.array([(*places[text], common, of, share, value) for text, value, common, of, share in found], HIT), ids


def _ids_and_places(
    dataset: Dataset, numbered: list[tuple[int, RawExample]], ids: list[int], hits: np.ndarray, rules: Rules
) -> Iterator[tuple[int, int]]:
    """(id, place) of each example, or of each text, without what is in the evaluation sets."""
    gone = defaultdict(set)
    for line, position in zip(hits["line"].tolist(), hits["position"].tolist()):
        gone[line].add(position)
    first = 0
    for line, example in numbered:
        own, first = ids[first : first + len(example.texts)], first + len(example.texts)
        left = without(example, gone.get(line, ()))
        if left is None:
            continue
        example, kept = left
        own = [own[position] for position in kept]
        if rules.duplicates == "examples":
            yield example_id(example, own, rules.keep_reversed), Place(dataset.rank, line, 0).number
            continue
        if kept[-1] >= MOST_POSITIONS:
            raise ValueError(f"{dataset.path}:{line}: the line has {kept[-1] + 1:,} texts: --duplicates=texts compares "
                             f"at most {MOST_POSITIONS:,} of one line: divide it, or set --duplicates=examples")
        for position, each in distinct_texts(own):
            yield each, Place(dataset.rank, line, kept[position]).number


def join(scans: list[Path], low: int, high: int, memory: int, part: Path) -> None:
    """Writes (place, place of the winner) for the ids of a range."""
    with new_part(part) as temporary:
        runs, done = Runs(temporary, REPEATED, memory // 2), 0
        for places, winners in repeated(runs_in(scans, IDS), memory // 2, low, high):
            runs.add(places, winners)
            done += 16 * len(places)
            reading.progress.at(part, done)
        runs.flush()
        write_summary(temporary, Counts())


class _Tally:
    """What went from one data set, and where it was found."""

    def __init__(self, index: EvaluationIndex, names: list[str]):
        self.kept = self.texts = 0
        self.removed = {"evaluation": 0, "duplicate": 0}
        self.shortened = {"evaluation": 0, "duplicate": 0}
        self.evaluation: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(
            ("examples", "matching_texts", "overlapping_texts"), 0))
        self.duplicate_of: dict[str, int] = defaultdict(int)
        self.found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self._index, self._names = index, names

    def add_hits(self, line: int, example: RawExample, hits: list[tuple]) -> None:
        """hits: rows of HIT without the line, of one example."""
        for name in set(self._index.set_names([hit[-1] for hit in hits])):
            self.evaluation[name]["examples"] += 1
        for position, common, of, share, value in hits:
            evaluation = self._index.text_of(value)
            self.evaluation[evaluation.set]["overlapping_texts" if of else "matching_texts"] += 1
            found = self.found["evaluation", evaluation.set]
            if len(found) < REPORTED:
                found.append({"line": line, "text": example.texts[position][:SHOWN_CHARACTERS],
                              "evaluation_line": evaluation.line, "evaluation_text": evaluation.text,
                              "common_ngrams": common, "of": of, "share": share})

    def add_duplicate(self, line: int, example: RawExample, position: int, winner: Place) -> None:
        name = self._names[winner.rank]
        self.duplicate_of[name] += 1
        found = self.found["duplicate", name]
        if len(found) < REPORTED:
            found.append({"line": line, "text": example.texts[position][:SHOWN_CHARACTERS], "winner_line": winner.line})

    def summary(self) -> dict[str, Any]:
        return {"kept": self.kept, "removed": self.removed, "shortened": self.shortened,
                "evaluation": dict(sorted(self.evaluation.items())), "duplicate_of": dict(self.duplicate_of),
                "examples": [{"reason": reason, "found_in": place, **each}
                             for (reason, place), found in sorted(self.found.items()) for each in found]}


def rewrite(
    dataset: Dataset, rules: Rules, names: list[str], index_folder: Path | None, scanned: Path, joined: list[Path],
    memory: int, part: Path,
) -> None:
    """Writes what is kept of a data set. names: of all data sets, by rank."""
    tally = _Tally(rules.open_index(index_folder), names)
    hits_of = _by_line((row[0], row[1:]) for row in _rows_of(scanned / HITS))
    duplicates_of = _by_line(_duplicates(dataset.rank, joined, memory))
    with new_part(part) as temporary:
        output = LineFiles(temporary)
        for numbered, _ in _blocks(dataset):
            for line, example in numbered:
                left = _left_of(line, example, hits_of(line), duplicates_of(line), rules, tally)
                if left is not None:
                    output.add(OUTPUT, line_of(left))
                    tally.kept += 1
        output.flush()
        write_summary(temporary, Counts(), **tally.summary())


def _left_of(
    line: int, example: RawExample, hits: list[tuple], duplicates: list[tuple[int, Place]], rules: Rules, tally: _Tally
) -> RawExample | None:
    """What is kept of an example."""
    left: tuple[RawExample, list[int]] | None = (example, list(range(len(example.texts))))
    gone = {position for position, *_ in hits}
    if hits:
        tally.add_hits(line, example, hits)
        left = without(example, gone)
        (tally.removed if left is None else tally.shortened)["evaluation"] += 1
    if duplicates and left is not None:
        position, winner = duplicates[0]
        tally.add_duplicate(line, example, position, winner)
        if rules.duplicates == "examples":
            left = None
        else:
            ids = rules.ids(example.texts)
            repeated_ids = {ids[position] for position, _ in duplicates}
            left = without(example, gone | {place for place, each in enumerate(ids) if each in repeated_ids})
        (tally.removed if left is None else tally.shortened)["duplicate"] += 1
    return None if left is None else left[0]


def _rows_of(path: Path) -> Iterator[tuple]:
    with open(path, "rb") as file:
        while len(rows := np.fromfile(file, HIT, HITS_AT_ONCE)):
            yield from rows.tolist()


def _duplicates(rank: int, joined: list[Path], memory: int) -> Iterator[tuple[int, tuple[int, Place]]]:
    """(line, (position, place of the winner)) in the order of the lines."""
    low, high = Place(rank, 0, 0).number, Place(rank + 1, 0, 0).number
    for places, winners in merged(runs_in(joined, REPEATED), memory, low, high):
        for number, winner in zip(places.tolist(), winners.tolist()):
            place = Place.of(number)
            yield place.line, (place.position, Place.of(winner))


def _by_line(rows: Iterator[tuple[int, Any]]) -> Callable[[int], list[Any]]:
    """A function that gives the rows of a line; it is called for the lines in their order."""
    waiting = next(rows, None)

    def rows_of(line: int) -> list[Any]:
        nonlocal waiting
        found = []
        while waiting is not None and waiting[0] == line:
            found.append(waiting[1])
            waiting = next(rows, None)
        return found

    return rows_of
