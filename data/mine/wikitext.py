"""The introduction of an article as plain text: what stands before the first heading.

mwparserfromhell reads the wikitext. Templates, references, tables, files, galleries, formulas, comments, categories and
links to other languages are left out; of a link the text stays. A few templates that only dress a text or a quantity
(`TEXT_TEMPLATES`) leave that text. Lists are left out, and brackets that have become empty are closed up.
"""

import re
from collections.abc import Collection
from typing import Any

try:
    import mwparserfromhell
    from mwparserfromhell import nodes
    from mwparserfromhell.parser import ParserError
except ImportError as error:
    raise ValueError('wikitext is read with mwparserfromhell: pip install -e ".[mine]"') from error

LONGEST_LEAD = 200_000  # characters of wikitext; pages with more before their first heading are lists without headings
DROPPED_TAGS = frozenset((
    "ref", "references", "table", "gallery", "math", "chem", "ce", "score", "timeline", "imagemap", "syntaxhighlight",
    "source", "pre", "templatedata", "graph", "hiero", "section", "mapframe", "maplink", "inputbox", "categorytree",
    "templatestyles", "style", "noinclude", "includeonly"))
SPACE_TAGS = frozenset(("br", "hr", "p", "div"))
TEXT_TEMPLATES = {  # name -> the parameters that are text, in order
    "lang": (2,), "nowrap": (1,), "nobr": (1,), "small": (1,), "transl": (-1,), "transliteration": (-1,),
    "convert": (1, 2), "cvt": (1, 2), "em": (1,), "abbr": (1,), "sup": (1,), "sub": (1,), "nihongo": (1,),
    "linktext": (1,),
}
_LIST = "\x01"  # begins a line of a list
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_HEADING = re.compile(r"^==.*==[ \t]*$", re.MULTILINE)
_OTHER_WIKI = re.compile(r"[a-z]{2,3}(-[a-z]{2,}){0,2}", re.ASCII)
_MEDIA = re.compile(r"\.(jpe?g|png|svg|gif|tiff?|webp|og[gv]|web[mp]|pdf|djvu|mp[34]|wav|midi?)$", re.IGNORECASE)
_LEFT_OVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|__[A-Z]+__")
_TIDY = tuple((re.compile(pattern), by) for pattern, by in (
    (r"[ \t\xa0\u200b]+", " "), (r"([(（])[ ,;:]+", r"\1"), (r"[ ,;:]{1,9}([)）])", r"\1"), (r" ?[(（][)）]", ""),
    (r"([,;])( ?[,;])+", r"\1"), (r" +([,.)])", r"\1"), (r"  +", " ")))
_SENTENCE_END = re.compile(r"[.!?。！？](?=\s|$)|[。！？]")


def lead_of(text: str) -> str:
    """The wikitext before the first heading, without comments."""
    text = _COMMENT.sub("", text)
    heading = _HEADING.search(text)
    return text[: min(heading.start() if heading else len(text), LONGEST_LEAD)]


def plain_text(wikitext: str, dropped_prefixes: Collection[str]) -> str:
    """The paragraphs of a piece of wikitext, one per line; "" if it cannot be read.

    dropped_prefixes: names in lower case of the namespaces of files and categories, whose links are left out.
    """
    try:
        text = _render(mwparserfromhell.parse(wikitext), dropped_prefixes)
    except ParserError:  # of wikitext that the library cannot read
        return ""
    paragraphs = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line.strip() for line in paragraph.split("\n")]
        lines = [line for line in lines if line and line[0] not in (_LIST, "|", "!")]
        tidied = _tidied(" ".join(lines))
        if any(character.isalpha() for character in tidied) and not _LEFT_OVER.search(tidied):
            paragraphs.append(tidied)
    return "\n".join(paragraphs)


def cut_at_sentence(text: str, most: int) -> str:
    """The text's first `most` characters, cut behind the last whole sentence; behind a word if there is none."""
    if len(text) <= most:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text[: most + 1]) if match.end() <= most]
    end = ends[-1] if ends else text.rfind(" ", 0, most + 1)
    return text[: end if end > 0 else most].strip()


def _tidied(text: str) -> str:
    for pattern, by in _TIDY:
        text = pattern.sub(by, text)
    return text.strip().lstrip(",;: ")


def _render(code: Any, dropped_prefixes: Collection[str]) -> str:
    return "".join(_text_of(node, dropped_prefixes) for node in code.nodes) if code is not None else ""


def _text_of(node: Any, dropped_prefixes: Collection[str]) -> str:
    match node:
        case nodes.Text():
            return node.value
        case nodes.HTMLEntity():
            try:
                return node.normalize()
            except (ValueError, OverflowError):
                return ""
        case nodes.Wikilink():
            return _link_text(node, dropped_prefixes)
        case nodes.ExternalLink():
            return _render(node.title, dropped_prefixes)
        case nodes.Template():
            return _template_text(node, dropped_prefixes)
        case nodes.Argument():
            return _render(node.default, dropped_prefixes)
        case nodes.Tag():
            name = str(node.tag).strip().lower()
            if name in DROPPED_TAGS:
                return ""
            if node.wiki_markup and name in ("li", "dt", "dd"):
                return _LIST
            space = " " if name in SPACE_TAGS else ""
            return space + _render(node.contents, dropped_prefixes) + space
    return ""  # comments and headings


def _link_text(node: Any, dropped_prefixes: Collection[str]) -> str:
    title = str(node.title).strip()
    prefix = title.split(":")[0].strip().lower().replace("_", " ") if ":" in title else ""
    if prefix in dropped_prefixes or (prefix and _MEDIA.search(title)):
        return ""
    shown = _render(node.text, dropped_prefixes).strip() if node.text is not None else ""
    if shown or not title:
        return shown
    if prefix and _OTHER_WIKI.fullmatch(prefix):
        return ""
    return _render(node.title, dropped_prefixes).strip().lstrip(":")


def _template_text(node: Any, dropped_prefixes: Collection[str]) -> str:
    name = str(node.name).strip().lower().replace("_", " ")
    wanted = (1,) if name.startswith("lang-") else TEXT_TEMPLATES.get(name, ())
    positional = [param.value for param in node.params if not param.showkey]
    found = [_render(positional[place - 1 if place > 0 else place], dropped_prefixes).strip()
             for place in wanted if abs(place) <= len(positional)]
    return " ".join(found)
