"""HTML to plain text: tags are dropped, character references resolved, white space folded into single spaces."""

from typing import Any

from lxml import etree

# Elements that are part of a word or sentence; white space stands in for the tags of all others.
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
    "kbd", "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var"))
_DROPPED = frozenset(("script", "style"))


class _Text:
    """Gets a parser's events and keeps the text."""

    def __init__(self, keep_code: bool):
        self._dropped_tags = _DROPPED if keep_code else _DROPPED | {"pre"}
        self._pieces: list[str] = []
        self._inside = 0  # elements that are dropped, with their text

    def start(self, tag: str, attributes: Any) -> None:
        if tag in self._dropped_tags:
            self._inside += 1
        if tag not in _INLINE:
            self._pieces.append(" ")

    def end(self, tag: str) -> None:
        if tag in self._dropped_tags:
            self._inside -= 1
        if tag not in _INLINE:
            self._pieces.append(" ")

    def data(self, text: str) -> None:
        if not self._inside:
            self._pieces.append(text)

    def close(self) -> str:
        text = " ".join("".join(self._pieces).split())
        self._pieces, self._inside = [], 0
        return text


class HtmlToText:
    """HtmlToText(keep_code)(html) -> text; without keep_code the text of code blocks (<pre>) is dropped, too."""

    def __init__(self, keep_code: bool):
        self._parser = etree.HTMLParser(target=_Text(keep_code), encoding="utf-8", no_network=True, huge_tree=True)

    def __call__(self, html: str) -> str:
        """The text of a piece of HTML. Anything is HTML: what is not well-formed is read as browsers read it."""
        data = html.replace("\0", " ").encode("utf-8", "replace")
        return etree.fromstring(data, self._parser) if data.strip() else ""
