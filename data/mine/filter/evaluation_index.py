"""Which texts occur in the evaluation sets: as a whole, or by the n-grams that they share with one evaluation text.

Two texts match if their normal forms are equal (words.py). They overlap if they share at least `share` of the distinct
n-grams of the shorter one, the one that has fewer:

    |A and B| / min(|A|, |B|) >= share,     A, B: the sets of n-grams (runs of n words) of the two texts

So a sentence that is quoted in a long text overlaps it, whichever of the two is the evaluation text. A text of fewer
than n words has no n-grams and can only match. The index lies on disk, sorted, and is mapped: the system holds what is
used of it, and all processes share that.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.files import read_json
from data.mine.filter.evaluation_files import FoundText, texts_of
from data.mine.filter.sorting import Runs, merged, runs_in
from data.mine.filter.words import distinct, ngrams_of, normal_id, words_of
from data.mine.source import Counts
from data.mine.writing import PART_FILE, new_part, write_summary

TEXT = np.dtype([("set", "<u4"), ("ngrams", "<u4"), ("line", "<u8"), ("offset", "<u8"), ("bytes", "<u8")])
HIT = np.dtype([("line", "<u8"), ("position", "<u4"), ("common", "<u4"), ("of", "<u4"), ("share", "<f8"),
                ("evaluation", "<u8")])  # a text of a training example, and the evaluation text that it is like
FILE_SHIFT = 40  # the number of an evaluation text is its file's number << FILE_SHIFT, plus its own in the file
SHOWN_CHARACTERS = 300  # of an evaluation text, in a report
BLOCK_TEXTS = 4096
IDS, NGRAMS = "ids", "ngrams"


class EvaluationText(NamedTuple):
    """An evaluation text, as a report names it."""

    set: str  # the file's name, and its split if the file says one
    line: int
    text: str  # its first characters


def index_file(path: Path, name: str, number: int, n: int, skip_splits: Collection[str], memory: int, part: Path
               ) -> None:
    """Writes the texts of one evaluation file, with the hashes of their normal forms and n-grams, as a part.

    n: words of an n-gram; 0: none.
    """
    with new_part(part) as temporary:
        runs = {kind: Runs(temporary, kind, memory // 2) for kind in (IDS, NGRAMS)}
        sets: dict[str, int] = {}
        count = 0
        block: list[FoundText] = []
        with open(temporary / "texts", "wb") as table, open(temporary / "shown", "wb") as shown:
            def add_block() -> None:
                nonlocal count
                words = [words_of(found.text) for found in block]
                numbers = np.arange(count, count + len(block), dtype=np.uint64) + np.uint64(number << FILE_SHIFT)
                runs[IDS].add(np.fromiter(map(normal_id, words), np.uint64, len(words)), numbers)
                hashes, owners = distinct(*ngrams_of(words, n)) if n else ngrams_of([], 1)
                runs[NGRAMS].add(hashes, numbers[owners])
                table.write(_table_of(block, sets, np.bincount(owners, minlength=len(block)), shown))
                count += len(block)
                block.clear()

            for found in texts_of(path, name, skip_splits):
                block.append(found)
                if len(block) == BLOCK_TEXTS:
                    add_block()
            add_block()
        for each in runs.values():
            each.flush()
        write_summary(temporary, Counts(), file=name, path=str(path), sets=list(sets), texts=count)


def _table_of(block: list[FoundText], sets: dict[str, int], ngrams: np.ndarray, shown: Any) -> bytes:
    """The rows of the table of texts; their first characters are written to `shown`."""
    rows = np.zeros(len(block), TEXT)
    for row, found, count in zip(rows, block, ngrams):
        text = found.text[:SHOWN_CHARACTERS].encode()
        row["set"] = sets.setdefault(found.split, len(sets))
        row["ngrams"], row["line"], row["offset"], row["bytes"] = count, found.line, shown.tell(), len(text)
        shown.write(text)
    return rows.tobytes()


def merge_parts(parts: Sequence[Path], memory: int, part: Path) -> None:
    """Writes the sorted ids and n-grams of all parts as one index."""
    with new_part(part) as temporary:
        for kind in (IDS, NGRAMS):
            with open(temporary / f"{kind}.keys", "wb") as keys, open(temporary / f"{kind}.values", "wb") as values:
                for rows in merged(runs_in(parts, kind), memory):
                    keys.write(rows.keys.data)
                    values.write(rows.values.data)
        write_summary(temporary, Counts(), parts=[each.name for each in parts])


class EvaluationIndex:
    """Looks up training texts in what merge_parts wrote; None for the folder: there are no evaluation texts."""

    def __init__(self, folder: Path | None, n: int, share: float):
        self.n, self.share = n, share
        self._rows = {kind: tuple(_mapped(folder and folder / f"{kind}.{column}", np.dtype("<u8"))
                                  for column in ("keys", "values")) for kind in (IDS, NGRAMS)}
        names = read_json(folder / PART_FILE)["parts"] if folder else []
        self._parts = [folder.parent / name for name in names] if folder else []
        self._texts = [_mapped(part / "texts", TEXT) for part in self._parts]
        self._sets = [[f"{summary['file']}:{split}" if split else summary["file"] for split in summary["sets"]]
                      for summary in (json.loads((part / PART_FILE).read_text()) for part in self._parts)]

    def hits(self, words: Sequence[Sequence[str]], ids: np.ndarray) -> list[tuple[int, int, int, int, float]]:
        """(text, evaluation text, n-grams in common, of how many, share) in the order of the texts; of each
        evaluation set the text that is most alike. A match has share 1, 0 n-grams in common of 0.

        words: of each text; ids [M] uint64: hashes of their normal forms.
        """
        best: dict[tuple[int, tuple[int, int]], tuple[int, int, int, int, float]] = {}
        keys, values = self._rows[IDS]
        first = np.searchsorted(keys, ids, "left")
        matching = np.flatnonzero(_equal_at(keys, first, ids))
        ends = np.searchsorted(keys, ids[matching], "right")
        for text, begin, end in zip(matching.tolist(), first[matching].tolist(), ends.tolist()):
            for value in values[begin:end].tolist():
                best.setdefault((text, self._set_of(value)), (text, value, 0, 0, 1.0))
        for found in self._overlaps(words) if self.share else []:
            key = found[0], self._set_of(found[1])
            if key not in best or best[key][4] < found[4]:
                best[key] = found
        return sorted(best.values(), key=lambda found: found[:2])

    def _overlaps(self, words: Sequence[Sequence[str]]) -> list[tuple[int, int, int, int, float]]:
        """(text, evaluation text, common, of, share) of all that share enough n-grams."""
        keys, values = self._rows[NGRAMS]
        if not len(keys):
            return []
        hashes, owners = ngrams_of(words, self.n)
        there = np.unique(owners[_equal_at(keys, np.searchsorted(keys, hashes, "left"), hashes)])
        found = []
        for text in there.tolist():
            own, _ = distinct(*ngrams_of([words[text]], self.n))
            first, end = (np.searchsorted(keys, own, side) for side in ("left", "right"))
            others = np.concatenate([values[a:b] for a, b in zip(first.tolist(), end.tolist())])
            for value, common in zip(*(each.tolist() for each in np.unique(others, return_counts=True))):
                fewer = min(len(own), int(self._row(value)["ngrams"]))
                if common / fewer >= self.share:
                    found.append((text, value, common, fewer, common / fewer))
        return found

    def _row(self, value: int) -> Any:
        return self._texts[value >> FILE_SHIFT][value & (1 << FILE_SHIFT) - 1]

    def _set_of(self, value: int) -> tuple[int, int]:
        return value >> FILE_SHIFT, int(self._row(value)["set"])

    def text_of(self, value: int) -> EvaluationText:
        """The evaluation text of this number."""
        row, file = self._row(value), value >> FILE_SHIFT
        with open(self._parts[file] / "shown", "rb") as shown:
            shown.seek(int(row["offset"]))
            text = shown.read(int(row["bytes"])).decode()
        return EvaluationText(self._sets[file][int(row["set"])], int(row["line"]), text)

    def set_names(self, values: Collection[int]) -> list[str]:
        return [self._sets[file][of_file] for file, of_file in map(self._set_of, values)]

    def texts_by_set(self) -> dict[str, int]:
        """How many texts each evaluation set has."""
        counts: dict[str, int] = defaultdict(int)
        for names, table in zip(self._sets, self._texts):
            for name, count in zip(names, np.bincount(table["set"], minlength=len(names)).tolist()):
                counts[name] += count
        return dict(counts)


def _mapped(path: Path | None, dtype: np.dtype) -> np.ndarray:
    if path is None or not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")


def _equal_at(keys: np.ndarray, places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[M] bool: whether keys[places[i]] is wanted[i]; a place may be the end of the keys."""
    if not len(keys):
        return np.zeros(len(wanted), bool)
    return keys[np.minimum(places, len(keys) - 1)] == wanted
