"""The example of one line or row of a training file, before it is tokenised, and the reason if there is none."""

from typing import Any, NamedTuple

LONGEST_LINE = 1 << 24  # bytes of a line or a CSV record, characters of a text: more is a bad line, and not kept
TOO_LONG = f"longer than {LONGEST_LINE >> 20} MiB"


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


def printable(name: str, most: int = 40) -> str:
    """The first characters of a name from a file, with ? for those that cannot be printed on one line."""
    return "".join(character if character.isprintable() else "?" for character in name[:most])


def clean_text(text: Any) -> str:
    """A text without white space at its ends. Raises BadLine if it is none, empty, too long or not Unicode."""
    if not isinstance(text, str):
        raise BadLine("a text is not a string")
    text = text.strip()
    if not text:
        raise BadLine("empty text")
    if len(text) > LONGEST_LINE:
        raise BadLine(f"a text is {TOO_LONG}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON's \ud800 without its other half
            raise BadLine("a text has half a surrogate pair") from None
    return text
