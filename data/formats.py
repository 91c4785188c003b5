"""Training files: one example per line, read in blocks of bytes and parsed line by line.

    .jsonl[.gz]  ["a", "b"]                                     a pair: query and positive
                 ["anchor", "positive", "negative"]             a triplet
                 {"texts": ["a", "b"]} or {"texts": ["a", "b", "c"]}    the same as the two lists above
                 {"set": ["a", "b", ...]}                       any two are a positive pair
                 {"query": "a", "pos": ["b", ...]}              the query with one positive, drawn at load time
                 {"query": "a", "pos": [...], "neg": [...]}     with one positive and one negative, drawn at load time;
                                                                optional "pos_scores" and "neg_scores": [number, ...]
    .tsv[.gz]    a<TAB>b or anchor<TAB>positive<TAB>negative; a header line only with --tsv_header.
                 With --tsv=parallel: a<TAB>its translation<TAB>another .., any number of columns, empty if there is
                 no translation: column 0 is the query, with one translation as its positive, drawn at load time
    .txt[.gz]    one text per line: query and positive are the same text, and differ only by dropout

A text is stripped of white space at both ends. A file holds examples of one kind, that of its first good line: pairs,
triplets, sets, query lists, or query lists with negatives. Any other line is bad, and so is a line that is not UTF-8,
not JSON, of another shape, or has an empty text. Blank lines are skipped. Other keys of an object are ignored.
Suffixes may be in upper case.
"""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

SUFFIXES = {".jsonl": "json", ".tsv": "tsv", ".txt": "text"}  # each also with .gz behind it
BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORMS = ({"texts"}, {"set"}, {"query", "pos"})  # keys of the objects that are examples
_QUERY_KEYS = {"query", "pos", "neg", "pos_scores", "neg_scores"}


class BadLine(ValueError):
    """A line that holds no example; the message is the reason."""


class BlankLine(BadLine):
    """A line of white space: it is skipped, and not counted as bad."""


class Prompts(NamedTuple):
    """The text that is put before each text, by role."""

    query: str = ""
    document: str = ""  # positives and negatives


NO_PROMPTS = Prompts()


class RawExample(NamedTuple):
    kind: str  # "pair", "triplet", "set" or "lists"
    texts: tuple[str, ...]  # query, positives, negatives
    num_positives: int
    scores: tuple[float, ...] | None = None  # of the texts after the first, NaN if a text has none
    ignored_keys: tuple[str, ...] = ()  # of the line's JSON object

    @property
    def has_negatives(self) -> bool:
        return len(self.texts) > 1 + self.num_positives

    @property
    def file_kind(self) -> str:
        """What the examples of one file have in common."""
        return "lists with negatives" if self.kind == "lists" and self.has_negatives else self.kind

    def prompted(self, prompts: Prompts) -> list[str]:
        query, *documents = self.texts
        return [prompts.query + query, *(prompts.document + text for text in documents)]


def syntax_of(path: str | Path) -> str | None:
    """"json", "tsv" or "text" by the file's name; None if it is no training file."""
    name = str(path).lower().removesuffix(".gz")
    return next((syntax for suffix, syntax in SUFFIXES.items() if name.endswith(suffix)), None)


def parse_line(line: bytes, syntax: str) -> RawExample:
    """The example of one line. Raises BadLine with the reason."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise BadLine("not valid UTF-8") from None
    if not text.strip():
        raise BlankLine("empty line")
    if syntax == "text":
        text = _clean(text)
        return RawExample("pair", (text, text), 1)
    if syntax == "tsv":
        return _from_texts(text.rstrip("\r\n").split("\t"), "a TSV line")
    if syntax == "parallel":
        return _from_columns(text.rstrip("\r\n").split("\t"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadLine("not valid JSON") from None
    return example_of(value)


def example_of(value: Any) -> RawExample:
    """The example of a line's JSON value. Raises BadLine with the reason."""
    if isinstance(value, list):
        return _from_texts(value, "a list")
    if not isinstance(value, dict):
        raise BadLine(f"a JSON {type(value).__name__} is neither a list nor an object")
    forms = [keys for keys in _FORMS if keys <= value.keys()]
    if len(forms) != 1:
        raise BadLine(
            'an object must have one of "texts", "set", or "query" and "pos" (also "neg", "pos_scores", "neg_scores"), '
            f"not {_quoted(value)}: write each line as a list of its texts or rename its keys")
    known = _QUERY_KEYS if "query" in forms[0] else forms[0]
    ignored = tuple(sorted(key[:40] for key in value.keys() - known))
    return _from_object(value)._replace(ignored_keys=ignored)


def _quoted(keys: Iterable[str]) -> str:
    first = [f'"{key[:40]}"' for key in itertools.islice(keys, 10)]
    return ", ".join(first) or "no keys"


def _from_object(value: dict) -> RawExample:
    if "texts" in value:
        return _from_texts(value["texts"], '"texts"')
    if "set" in value:
        texts = tuple(dict.fromkeys(_clean_list(value["set"], '"set"')))  # a text twice is no pair
        if len(texts) < 2:
            raise BadLine("a set of fewer than two different texts")
        return RawExample("set", texts, len(texts) - 1)
    return _from_query(value)


def _from_texts(values, what: str) -> RawExample:
    texts = _clean_list(values, what)
    if len(texts) == 2:
        return RawExample("pair", texts, 1)
    if len(texts) == 3:
        return RawExample("triplet", texts, 1)
    advice = ": keep only the columns of texts, or set --tsv=parallel" if what == "a TSV line" else ""
    raise BadLine(f"{what} must have 2 or 3 texts{advice}")


def _from_columns(cells: list[str]) -> RawExample:
    source, *translations = cells
    translations = [_clean(cell) for cell in translations if cell.strip()]
    if not translations:
        raise BadLine("no translation")
    return RawExample("lists", (_clean(source), *translations), len(translations))


def _from_query(value: dict) -> RawExample:
    positives = _clean_list(value["pos"], '"pos"')
    negatives = _clean_list(value.get("neg", []), '"neg"')
    if not positives:
        raise BadLine('"pos" is empty')
    scores = None
    if "pos_scores" in value or "neg_scores" in value:
        scores = _scores(value, "pos_scores", len(positives)) + _scores(value, "neg_scores", len(negatives))
    return RawExample("lists", (_clean(value["query"]), *positives, *negatives), len(positives), scores)


def _scores(value: dict, key: str, count: int) -> tuple[float, ...]:
    scores = value.get(key, [float("nan")] * count)
    if not isinstance(scores, list) or any(type(score) not in (int, float) for score in scores):
        raise BadLine(f'"{key}" is not a list of numbers')
    if len(scores) != count:
        raise BadLine(f'"{key}" does not have one score for each text')
    return tuple(float(score) for score in scores)


def _clean_list(values, what: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise BadLine(f"{what} is not a list of texts")
    return tuple([_clean(value) for value in values])


def _clean(text) -> str:
    if not isinstance(text, str):
        raise BadLine("a text is not a string")
    text = text.strip()
    if not text:
        raise BadLine("empty text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON's \ud800 without its other half
            raise BadLine("a text has half a surrogate pair") from None
    return text


class SourceFile:
    """One training file as blocks of whole lines; counts the bytes read and their CRC-32."""

    def __init__(self, path: Path, tsv_header: bool = False, tsv: Literal["texts", "parallel"] = "texts"):
        self.path = path
        self.syntax = syntax_of(path)
        if self.syntax is None:
            raise ValueError(f"{path}: no training format; its name must end in {', '.join(SUFFIXES)}, or that and .gz")
        self.skip_header = tsv_header and self.syntax == "tsv"
        self.columns: list[str] = []  # the names in the header, once it has been read
        if self.syntax == "tsv" and tsv == "parallel":
            self.syntax = "parallel"
        self.bytes_read = 0
        self.crc32 = 0

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
        """(number of the first line, whole lines of about block_bytes bytes); the first line of a file is 1.

        Raises ValueError naming the file if it is empty, or is a truncated or damaged gzip file.
        """
        try:
            yield from self._blocks(block_bytes)
        except EOFError as error:
            raise ValueError(f"{self.path}: truncated gzip file: {error}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{self.path}: damaged gzip file: {error}") from error

    def _blocks(self, block_bytes: int) -> Iterator[tuple[int, bytes]]:
        with open(self.path, "rb", buffering=0) as raw:
            counted = io.BufferedReader(_CountedReads(raw, self), buffer_size=1 << 17)
            lines = gzip.GzipFile(fileobj=counted) if self.path.name.lower().endswith(".gz") else counted
            number = 1
            while block := lines.read(block_bytes):
                block += lines.readline()
                count = block.count(b"\n") + (not block.endswith(b"\n"))
                if number == 1:
                    block = block.removeprefix(BYTE_ORDER_MARK)
                    if self.skip_header:
                        header, _, block = block.partition(b"\n")
                        self.columns = header.decode(errors="replace").strip("\r").split("\t")
                yield number + (number == 1 and self.skip_header), block
                number += count
            if number == 1:
                raise ValueError(f"{self.path}: the file is empty")


class _CountedReads(io.RawIOBase):
    """The raw reads of a file, counted for progress and check-summed for resuming."""

    def __init__(self, raw: io.RawIOBase, source: SourceFile):
        self._raw, self._source = raw, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._raw.readinto(buffer)
        self._source.bytes_read += count
        self._source.crc32 = zlib.crc32(memoryview(buffer)[:count], self._source.crc32)
        return count


def split_lines(block: bytes) -> list[bytes]:
    """The lines of a block; only a line feed ends a line (a carriage return before it is stripped with the text)."""
    lines = block.split(b"\n")
    return lines if lines[-1] else lines[:-1]
