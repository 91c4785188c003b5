"""JSON that does not fit in memory: the values of one long array or object, decoded one at a time.

SQuAD, TriviaQA, COCO and SPECTER are published as one JSON value of up to several GB. Its text is read in chunks, and
`json`'s own C decoder takes one element after the other from the chunk; a chunk grows only if an element does not end
in it. This needs no further library, and memory holds one element (at most MAX_VALUE characters) and one chunk.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

CHUNK = 1 << 20  # characters
MAX_VALUE = 1 << 25  # characters of one element
_BRACKET_OR_STRING = re.compile(r'["\[\]{}]')
_SPACE = re.compile(r"[ \t\r\n]*")
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_NUMBER = re.compile(r"[-+.eE0-9]*")
_DECODER = json.JSONDecoder()


class JsonError(ValueError):
    """The text is not the JSON that is expected; the message says at which character."""


class JsonCut(EOFError):
    """The text ends in the middle of a value. (An EOFError, as of a truncated gzip file: what came before is whole.)"""


class NoSuchKey(JsonError):
    """The JSON is whole, but does not have the array or object that is asked for."""


def values(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    """("value 1", the value), ... of a file of JSON values one after the other, with or without line ends between."""
    text = _Text(file)
    number = 0
    while text.peek():
        number += 1
        yield f"value {number}", text.value()


def elements(file: io.BufferedReader, *path: str) -> Iterator[tuple[str, Any]]:
    """("data[0]", the element), ... of the array that the keys `path` lead to; no keys: the whole file is the array.

    Raises NoSuchKey if there is no array, JsonCut if the file ends too early, JsonError if it is not JSON.
    """
    text, depth = _inside(file, path, "[", "an array")
    number = 0
    while text.more("]", number):
        yield f"{'.'.join(path)}[{number}]", text.element()
        number += 1
    text.ascend(depth)


def members(file: io.BufferedReader, *path: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of each member of the object that the keys `path` lead to. Raises as `elements` does."""
    text, depth = _inside(file, path, "{", "an object")
    number = 0
    while text.more("}", number):
        yield text.key(), text.element()
        number += 1
    text.ascend(depth)


def _inside(file: io.BufferedReader, path: tuple[str, ...], bracket: str, wanted: str) -> tuple["_Text", int]:
    """The text behind the bracket that opens what the keys `path` lead to, and how deep that is."""
    text = _Text(file)
    if not text.peek():
        raise NoSuchKey("the file is empty")
    depth = text.descend(path)
    text.expect(bracket, wanted, path)
    return text, depth


class _Text:
    """The decoded text of a file, of which a window is in memory."""

    def __init__(self, file: io.BufferedReader):
        # A wrong byte becomes half a surrogate pair: the texts that hold it are refused, the others are kept.
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._window, self._at, self._before, self._ended = "", 0, 0, False
        self._truncated: EOFError | None = None  # raised when what was read before it is used up

    def _fill(self) -> bool:
        if self._truncated:
            raise self._truncated
        pieces = [self._window[self._at:]]
        wanted = max(CHUNK, len(pieces[0]))
        try:
            while wanted > 0 and not self._ended:
                data = self._file.read1(CHUNK)
                self._ended = not data
                pieces.append(self._decoder.decode(data, self._ended))
                wanted -= len(pieces[-1])
        except EOFError as error:
            self._truncated = error
        self._before += self._at
        grown = any(pieces[1:])
        self._window, self._at = "".join(pieces), 0
        if self._truncated and not grown:
            raise self._truncated
        return grown

    def _place(self, at: int | None = None) -> str:
        return f"at character {self._before + (self._at if at is None else at) + 1}"

    def _cut(self) -> JsonCut:
        return JsonCut(f"the JSON ends in the middle of a value, {self._place(len(self._window))}")

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._window, self._at).end()
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._fill():
                return ""

    def take(self, wanted: str) -> None:
        found = self.peek()
        if not found:
            raise self._cut()
        if found != wanted:
            raise JsonError(f"not JSON: {wanted!r} is expected {self._place()}, not {found!r}")
        self._at += 1

    def expect(self, bracket: str, what: str, path: tuple[str, ...]) -> None:
        found = self.peek()
        if found and found != bracket:
            raise NoSuchKey(f"{'.'.join(path) or 'the JSON value'} is not {what}")
        self.take(bracket)

    def more(self, closing: str, number: int) -> bool:
        """Whether another element follows; takes the comma before it, or the closing bracket."""
        found = self.peek()
        if found == closing:
            self._at += 1
            return False
        if number:
            self.take(",")
        return True

    def key(self) -> str:
        if self.peek() not in ('"', ""):
            raise JsonError(f"not JSON: a key is expected {self._place()}")
        name = self.value()
        self.take(":")
        return name

    def value(self) -> Any:
        """Decodes the next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                if len(self._window) - self._at > MAX_VALUE:
                    raise JsonError(f"no value of at most {MAX_VALUE} characters begins {self._place()}: {error.msg} "
                                    f"{self._place(error.pos)}") from None
                read = error.pos - self._at
                if not self._fill():  # which moved the window
                    raise self._broken(error.msg, self._at + read) from None
                continue
            except (ValueError, RecursionError):  # an integer of thousands of digits, or brackets without end
                raise JsonError(f"a value that cannot be decoded begins {self._place()}") from None
            if end == len(self._window) and not self._ended and self._fill():
                continue  # a number may go on
            self._at = end
            return value

    def element(self) -> Any:
        """Decodes the next value of an array or object, after which something must follow: else a number may be cut."""
        value = self.value()
        if not self.peek():
            raise self._cut()
        return value

    def _broken(self, reason: str, at: int) -> ValueError | EOFError:
        # At the end of the file the decoder cannot tell a cut value from a wrong one, save by what it stopped at.
        rest = self._window[at:].rstrip()
        cut = any(word.startswith(rest) for word in _WORDS) or _NUMBER.fullmatch(rest) or (
            reason.startswith("Invalid \\") and len(rest) < 7)
        if cut or reason.startswith("Unterminated"):
            return self._cut()
        return JsonError(f"not JSON: {reason} {self._place(at)}")

    def skip(self) -> None:
        """Passes over the next value, however long, without building it."""
        depth = 0
        if self.peek() not in ("[", "{"):
            self.value()
            return
        while True:
            match = _BRACKET_OR_STRING.search(self._window, self._at)
            if match is None:
                self._at = len(self._window)
                if not self._fill():
                    raise self._cut()
                continue
            self._at = match.start()
            if match.group() == '"':
                self.value()
                continue
            self._at += 1
            depth += 1 if match.group() in "[{" else -1
            if depth == 0:
                return

    def descend(self, path: tuple[str, ...]) -> int:
        """Goes to the value that the keys lead to; returns how many objects are open."""
        for depth, key in enumerate(path):
            self.expect("{", "an object", path[:depth])
            number = 0
            while True:
                if not self.more("}", number):
                    raise NoSuchKey(f"it has no key {key!r}")
                if self.key() == key:
                    break
                self.skip()
                number += 1
        return len(path)

    def ascend(self, depth: int) -> None:
        """Reads to the end of the file, so that a file that was cut after the array is noticed."""
        for _ in range(depth):
            while self.more("}", 1):
                self.key()
                self.skip()
        if self.peek():
            raise JsonError(f"not JSON: more text follows the value, {self._place()}")
