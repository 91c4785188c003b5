"""Finds what is wrong with a whole training file in its first block, before any of its lines is tokenised.

    a .tsv or list whose column holds numbers or labels     a score would be trained as a text
    a first line of column names                            they would be trained as an example
    lines of which more than half are bad                   keys or a format that this file does not have
"""

import collections
import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from data.examples import BadLine
from data.formats import Layout, csv_records, parse_records, split_lines
from data.source_file import SourceFile

FEW_VALUES, MANY_TEXTS = 10, 100  # a last column of so few different cells beside so many first texts holds labels
COLUMN_WORDS = frozenset((
    "sentence", "sent", "text", "texts", "query", "question", "answer", "positive", "negative", "anchor", "pos",
    "neg", "hard", "premise", "hypothesis", "source", "target", "src", "tgt", "passage", "document", "doc", "title",
    "body", "score", "scores", "label", "labels", "similarity", "relatedness", "gold", "id", "qid", "pid", "docid",
    "translation", "original", "paraphrase", "summary", "context", "response", "input", "output", "string",
    "phrase", "duplicate", "is", "split", "genre",
))
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?")


def check_first_block(source: SourceFile, max_bad_share: float) -> None:
    """Raises ValueError if the first block of a file shows that prepare would misread it."""
    path = source.path
    with contextlib.closing(source.blocks()) as blocks:
        first_line, block = next(blocks)
    _check_lines(path, first_line, block, source.layout, max_bad_share)
    rows = _rows(block, source.syntax)
    if rows and not source.columns and _is_header(rows, source.syntax == "parallel"):
        advice = "delete it" if source.syntax == "json" else "set --tsv_header"
        raise ValueError(f"{path}: its first line looks like column names ({', '.join(rows[0])}): {advice}")
    if source.syntax != "parallel" and source.layout.columns is None and (column := _column_of_values(rows)):
        example = next(row[column - 1] for row in rows if len(row) >= column)
        raise ValueError(
            f"{path}: column {column} holds numbers or labels, such as {example!r}, that would be trained as texts: "
            "keep only the columns of texts or name them (--columns), or score the file as an STS evaluation file. "
            'If they are texts, write the file as .jsonl lines of {"query": ..., "pos": [...]}'
        )


def named_reasons(path: Path, bad_lines: list[tuple[int, str]]) -> str:
    """The most frequent reasons, each once: with its first line, and how many lines have it."""
    first: dict[str, int] = {}
    counts = collections.Counter(reason for _, reason in bad_lines)
    for number, reason in bad_lines:
        first.setdefault(reason, number)
    return "; ".join(
        f"{path}:{first[reason]}: {reason}" + (f" ({count:,} such lines)" if count > 1 else "")
        for reason, count in counts.most_common(3))


def _check_lines(path: Path, first_line: int, block: bytes, layout: Layout, max_bad_share: float) -> None:
    parsed = list(parse_records(first_line, block, layout))
    bad_lines = [(number, str(found)) for number, found in parsed if isinstance(found, BadLine)]
    read, good = len(parsed), len(parsed) - len(bad_lines)
    if bad_lines and (not good or len(bad_lines) > max(max_bad_share, 0.5) * read):
        found = f"{len(bad_lines):,} of the first {read:,} lines are bad" if good else f"no example in {read:,} lines"
        raise ValueError(f"{path}: {found}: {named_reasons(path, bad_lines)}")


def _rows(block: bytes, syntax: str) -> list[list[str]]:
    """The cells of each line that has columns: of a .tsv or .csv file, and JSON lists."""
    if syntax == "csv":
        return [[cell.strip() for cell in cells] for _, cells in csv_records(io.BytesIO(block)) if cells]
    rows = []
    for line in [] if syntax == "parquet" else split_lines(block):
        text = line.decode(errors="replace").strip("\r\n")
        if syntax in ("tsv", "parallel") and text.strip():
            rows.append([cell.strip() for cell in text.split("\t")])
        elif syntax == "json" and text.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                cells = json.loads(text)
                if all(isinstance(cell, str) for cell in cells):
                    rows.append([cell.strip() for cell in cells])
    return rows


def _is_header(rows: list[list[str]], parallel: bool) -> bool:
    """Whether the first row has column names, or language codes, and hardly any other row looks like it."""
    first, *others = rows
    if len(first) < 2:
        return False
    if all(map(_is_name, first)):
        return _share(others, lambda row: all(map(_is_name, row))) <= 0.05
    if any(map(_is_name, first)) and all(map(_is_word, first)):  # among texts, not in a dictionary of single words
        return _share(others, lambda row: all(map(_is_word, row))) <= 0.05
    return parallel and all(map(_is_language_code, first)) and _share(
        others, lambda row: all(map(_is_language_code, row))) <= 0.05


def _share(rows: list[list[str]], condition: Callable[[list[str]], bool]) -> float:
    return sum(map(condition, rows)) / max(1, len(rows))


def _is_word(cell: str) -> bool:
    return re.fullmatch(r"[^\W\d][\w.-]*", cell) is not None


def _is_language_code(cell: str) -> bool:
    return re.fullmatch(r"[a-z]{2}([-_]\w{2,8})*", cell) is not None


def _is_name(cell: str) -> bool:
    """sentence1, text_a, "Positive passage", isDuplicate: column words, and single letters beside them."""
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", cell)]
    return len(cell) < 40 and bool(COLUMN_WORDS & set(words)) and all(
        word in COLUMN_WORDS or len(word) == 1 for word in words)


def _column_of_values(rows: list[list[str]]) -> int:
    """The number (from 1) of a column of numbers or labels; 0: none. The second of two may be an answer in numbers."""
    for width in (2, 3):
        of_width = [row for row in rows if len(row) == width]
        if 2 * len(of_width) < len(rows) or not of_width:
            continue

        def cells_of(column: int, rows: list[list[str]] = of_width) -> list[str]:
            return [row[column - 1] for row in rows]

        for column in range(width, 0, -1):
            cells = cells_of(column)
            numbers = sum(bool(_NUMBER.fullmatch(cell)) for cell in cells)
            if 2 * numbers > len(cells) and (width, column) != (2, 2):
                return column
        if len(set(cells_of(width))) <= FEW_VALUES and len(set(cells_of(1))) >= MANY_TEXTS:
            return width
    return 0
