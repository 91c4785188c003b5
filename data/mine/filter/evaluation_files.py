"""The texts of evaluation files, whatever their layout.

The readers of evaluation/ check that a file can be scored; here every text counts, and a text too many does no harm. So
the files are read by rules, and data/ imports nothing from evaluation/:

    .tsv .csv .txt   A first line that names a column of texts (sentence1, text, query, question, premise, ...) is a
                     header: the cells of those columns are texts. Without one, every cell of words is.
    .jsonl .parquet  The strings of each object, lists and objects in it included, and all strings of each list. Under
                     a key that names texts any string counts, under another one only words; ids, labels, languages,
                     sources and the like do not. A "title" beside a "text" counts only together with it, as in BEIR.

Words: at least two, one of them with a letter, parted by a space unless the script has none. A file may be compressed
(data/formats.py). Lines, rows or files of a split that --skip_splits names are left out; the split is the column or key
"split", or else a word of the file's name.
"""

import io
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.formats import OVERLONG, csv_records, known_suffixes, split_lines, syntax_of
from data.mine import reading
from data.mine.filter.words import words_of
from data.source_file import SourceFile
from data.sources import NOTICE

TEXT_NAMES = frozenset((
    "sentence", "text", "query", "question", "premise", "hypothesis", "anchor", "pos", "positive", "neg", "negative",
    "passage", "document", "title", "body", "answer", "context", "caption", "paraphrase", "utterance", "set"))
OTHER_NAMES = frozenset((
    "_id", "id", "qid", "pid", "docid", "label", "label_text", "score", "split", "source", "lang", "language", "genre",
    "url", "metadata", "category", "dataset", "task", "entailment_label"))
_SPLIT_WORD = r"(?<![a-z0-9])({})(?![a-z0-9])"


class FoundText(NamedTuple):
    line: int  # or row; from 1
    split: str  # "" if the file does not say
    text: str


def find_files(places: Sequence[str]) -> tuple[list[tuple[Path, str]], str]:
    """([(file, name in the report)], a sentence about the files that are left out, or "") of files and folders.

    Raises ValueError for a place that does not exist, and one that has no evaluation file.
    """
    found: dict[str, tuple[Path, str]] = {}
    others: list[str] = []
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(f"--evaluation_dir={place} does not exist")
        files = [(place, place.name)]
        if place.is_dir():
            files = [(path, path.relative_to(place).as_posix()) for path in _files_below(place)]
        taken = [each for each in files if syntax_of(each[0]) and not NOTICE.fullmatch(each[0].name)]
        if not taken:
            raise ValueError(f"--evaluation_dir={place} has no evaluation file: names end in {known_suffixes()}")
        others += [name for each in files if each not in taken for name in [each[1]]]
        for path, name in taken:
            found.setdefault(os.path.realpath(path), (path, name))
    left_out = f"left out of --evaluation_dir, because they are no tables or lines of texts: {', '.join(others[:10])}"
    return list(found.values()), left_out + (", ..." if len(others) > 10 else "") if others else ""


def _files_below(folder: Path) -> list[Path]:
    """All files of a folder, those of linked folders included, each folder once; hidden ones are left out."""
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        files += [Path(place, name) for name in names if real not in seen and not name.startswith(".")]
        seen.add(real)
    return sorted(path for path in files if path.is_file())


def texts_of(path: Path, name: str, skip_splits: Collection[str]) -> Iterator[FoundText]:
    """The texts of one file. Raises ValueError naming file and line for what is not UTF-8 or not JSON."""
    split_of_name = next((split for split in skip_splits if re.search(
        _SPLIT_WORD.format(re.escape(split.lower())), name.lower())), "")
    skipped = {split.lower() for split in skip_splits}
    for line, split, texts in _rows(path):
        if (split or split_of_name).lower() not in skipped:
            yield from (FoundText(line, split, text) for text in dict.fromkeys(map(str.strip, texts)) if text)


def _rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(number, split or "", texts) of each line or row."""
    syntax = syntax_of(path)
    if syntax == "parquet":
        yield from ((number, _split(row), list(_strings(row))) for number, row in _parquet_rows(path))
        return
    columns: list[int] | None = None
    split_column, started = None, False
    for number, cells in _lines(path, syntax):
        if syntax == "json":
            yield number, _split(cells), list(_strings(cells))
            continue
        if not started:
            started, names = True, [cell.strip().lower() for cell in cells]
            named = [column for column, each in enumerate(names) if _names_texts(each)]
            if (named and len(cells) > 1) or names in (["text"], ["sentence"]):
                columns = named
                split_column = names.index("split") if "split" in names else None
                continue
        if columns is None:
            yield number, "", [cell for cell in cells if _is_words(cell)]
        else:
            split = cells[split_column].strip() if split_column is not None and split_column < len(cells) else ""
            yield number, split, [cells[column] for column in columns if column < len(cells)]


def _lines(path: Path, syntax: str | None) -> Iterator[tuple[int, Any]]:
    """(number, cells of the line or its JSON value) of each line that is not blank."""
    source = SourceFile(path)
    for first, block in source.blocks():
        reading.progress.at(path, source.bytes_read)
        if syntax == "csv":
            for lines, cells in csv_records(io.BytesIO(block)):
                if cells is None:
                    raise ValueError(f"{path}:{first}: not valid CSV: a quote is not closed, or not doubled")
                if any(cells):
                    yield first, cells
                first += len(lines)
            continue
        for number, line in enumerate(split_lines(block), start=first):
            if not line or line.isspace():
                continue
            if line.rstrip() == OVERLONG:
                raise ValueError(f"{path}:{number}: the line is too long for a line of texts")
            try:
                text = line.decode()
                yield number, json.loads(text) if syntax == "json" else text.rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                raise ValueError(f"{path}:{number}: not UTF-8: save the file as UTF-8") from None
            except (ValueError, RecursionError):
                raise ValueError(f"{path}:{number}: not JSON: correct the line or remove it") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict]]:
    from data.tables import named_damage  # pyarrow is an extra

    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: Parquet files need pyarrow: pip install -e '.[parquet]'") from error
    with named_damage(path):
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        first = 1
        for batch in file.iter_batches(256, use_threads=False):
            yield from enumerate(batch.to_pylist(), start=first)
            first += batch.num_rows


def _split(value: Any) -> str:
    split = value.get("split") if isinstance(value, dict) else ""
    return split if isinstance(split, str) else ""


def _strings(value: Any, any_string: bool = True) -> Iterator[str]:
    """The strings of a JSON value that are texts; any_string: words or not."""
    if isinstance(value, str):
        if any_string or _is_words(value):
            yield value.encode(errors="replace").decode()
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, any_string)
    elif isinstance(value, dict):
        title, text = value.get("title"), value.get("text")
        has_both = all(isinstance(each, str) and each.strip() for each in (title, text))
        if has_both:
            yield from _strings(f"{title} {text}")
        for key, each in value.items():
            if key.lower() not in OTHER_NAMES and not (has_both and key == "title"):
                yield from _strings(each, _names_texts(key.lower()))


def _names_texts(name: str) -> bool:
    """sentence1, sentence_A, texts, query, "negative_3"."""
    return re.sub(r"(s|[ _]?[0-9]+|[ _][ab])$", "", name) in TEXT_NAMES or name in TEXT_NAMES


def _is_words(cell: str) -> bool:
    words = words_of(cell.encode(errors="replace").decode())
    return len(words) > 1 and (" " in cell or not cell.isascii()) and any(map(str.isalpha, "".join(words)))
