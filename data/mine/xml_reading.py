"""XML dumps as a stream of elements: no entities, no document type, nothing fetched, memory bounded by one element."""

import codecs
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.parsers import expat

from data.mine.reading import CHUNK_BYTES, in_utf8
from data.mine.source import Counts

MAX_ELEMENT_BYTES = 1 << 26  # of the text, names and attributes of one element; larger ones are left out and counted
MAX_DEPTH = 200
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)["']""")
# Characters that XML forbids, but dumps have: as themselves, and as references such as &#x0;.
_FORBIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_REFERENCE = re.compile(r"&#(?!x[AD9];)(?:x([0-9a-fA-F]{1,8})|([0-9]{1,10}));")
_OPEN_REFERENCE = 16  # characters that are held back at the end of a chunk, which may cut a reference in two


def elements(
    chunks: Iterator[bytes], path: Path | str, names: Collection[str], counts: Counts, *, root: str | None = None,
    external_type: bool = False,
) -> Iterator[Element]:
    """Each element of these names, without namespace, with its attributes, text and children; others are passed over.

    `chunks` are the document's bytes (data/mine/reading.py); `path` names it in errors. Text that ends before the root
    element does is noted as cut short. Raises ValueError naming the line if the document is not well-formed, has a
    document type declaration, is nested deeper than MAX_DEPTH, or has another root element than `root`.
    With `external_type` a declaration that only names a document type elsewhere is allowed; that is never read.
    """
    builder = _Builder(path, names, counts, root, external_type)
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text, parser.buffer_size = True, 1 << 20
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse_document_type
    fed, waiting, wanted = 0, [], 0
    try:
        for text in _allowed(_as_text(chunks)):
            waiting.append(text)
            wanted -= len(text)
            if wanted > 0:
                continue  # expat scans an unfinished tag again each time: larger pieces, fewer times
            data = "".join(waiting).encode()
            waiting.clear()
            parser.Parse(data)
            fed += len(data)
            yield from builder.take()
            unfinished = fed - max(parser.CurrentByteIndex, 0)
            if unfinished > MAX_ELEMENT_BYTES:
                line = parser.CurrentLineNumber
                raise ValueError(f"{path}: line {line}: a tag longer than {MAX_ELEMENT_BYTES:,} bytes")
            wanted = unfinished if unfinished > CHUNK_BYTES else 0
        parser.Parse("".join(waiting).encode())
        yield from builder.take()
        if not builder.seen_root:
            raise ValueError(f"{path}: there is no XML element in it: it is not a file of this source")
        if builder.depth:
            raise EOFError(f"the XML ends in line {parser.CurrentLineNumber}, before its root element does")
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        yield from builder.take()
        reason = expat.ErrorString(error.code)
        raise ValueError(f"{path}: line {error.lineno}: not well-formed XML: {reason}") from error


def _as_text(chunks: Iterator[bytes]) -> Iterator[str]:
    """The document as text: in the encoding of its byte order mark, else of its declaration, else UTF-8."""
    chunks = in_utf8(chunks)
    head = next(chunks, b"")
    declared = _DECLARED.match(head[:200])
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding.startswith("utf-16"):  # it had a byte order mark, and is UTF-8 by now
        encoding = "utf-8"
    try:
        "".encode(encoding)  # not all codecs are encodings of text
    except LookupError:
        encoding = "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head)
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", True)


def _allowed(texts: Iterator[str]) -> Iterator[str]:
    """The text with U+FFFD for characters that XML forbids, and for references to them."""
    rest = ""
    for text in texts:
        text = rest + text
        start = text.rfind("&", max(0, len(text) - _OPEN_REFERENCE))
        cut = start if start >= 0 and ";" not in text[start:] else len(text)
        text, rest = text[:cut], text[cut:]
        yield _FORBIDDEN.sub("\ufffd", _REFERENCE.sub(_reference, text))
    yield rest


def _reference(match: re.Match) -> str:
    code = int(match[1], 16) if match[1] else int(match[2])
    valid = code in (9, 10, 13) or (0x20 <= code <= 0x10ffff and not _FORBIDDEN.match(chr(code)))
    return match[0] if valid else "\ufffd"


class _Builder:
    """Builds the wanted elements out of expat's events."""

    def __init__(self, path: Path | str, names: Collection[str], counts: Counts, root: str | None,
                 external_type: bool):
        self._path, self._names, self._counts, self._root = path, set(names), counts, root
        self._external_type = external_type
        self._open: list[Element] = []  # of the wanted element under way, outermost first
        self._finished: list[Element] = []
        self._bytes = 0  # of the wanted element under way
        self._skip_to: int | None = None  # depth at which an element that is too large ends
        self.depth, self.seen_root = 0, False

    def take(self) -> list[Element]:
        finished, self._finished = self._finished, []
        return finished

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition("}")[2]
        if not self.seen_root and self._root not in (None, name):
            raise ValueError(f"{self._path}: the root element is <{name[:40]}>, not <{self._root}>: it is not a file "
                             "of this source")
        self.seen_root = True
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"{self._path}: elements are nested deeper than {MAX_DEPTH}")
        if self._skip_to is not None or (not self._open and name not in self._names):
            return
        element = Element(name, attributes)
        if self._open:
            self._open[-1].append(element)
        else:
            self._bytes = 0
        self._open.append(element)
        self._grow(100 + sum(len(key) + len(value) for key, value in attributes.items()))

    def end(self, name: str) -> None:
        if self._skip_to is None and self._open:
            element = self._open.pop()
            if not self._open:
                self._finished.append(element)
        if self._skip_to == self.depth:
            self._skip_to = None
        self.depth -= 1

    def text(self, data: str) -> None:
        if not self._open:
            return
        self._grow(len(data))
        if self._open:
            element = self._open[-1]
            if len(element):
                element[-1].tail = (element[-1].tail or "") + data
            else:
                element.text = (element.text or "") + data

    def _grow(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_ELEMENT_BYTES:
            self._counts[f"<{self._open[0].tag}> longer than {MAX_ELEMENT_BYTES:,} bytes"] += 1
            self._skip_to = self.depth - len(self._open) + 1
            self._open.clear()

    def refuse_document_type(self, name: str, system: str, public: str, has_declarations: int) -> None:
        if self._external_type and not has_declarations:
            return
        raise ValueError(f"{self._path}: the XML has a document type declaration <!DOCTYPE {name[:40]}>, which can "
                         "define entities: dumps have none")
