"""When two texts are the same text: their normal form, its words, and the hashes of runs of words (n-grams).

The normal form: Unicode's NFKC, case folding and NFKC again; invisible formatting characters (category Cf, such as the
soft hyphen) are removed; punctuation (P), white space and separators (Z) and control characters (Cc) part words; words
are joined by one space. Symbols (S: + < = $ and others), accents and vowel signs stay. In scripts that are written
without spaces each character is a word. A text without any word is its own normal form, without white space.

So "The  CAT, sat." and "the cat sat" are one text. "1.5" and "15" are two, and so are "don't" and "dont".
"""

import functools
import unicodedata
from collections.abc import Sequence

import numpy as np

from data.shards import text_id

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 divided by the golden ratio
CACHED_WORDS = 1 << 18
_WITHOUT_SPACES = (  # first and last code point: Thai, Lao, Myanmar, Khmer, kana, ideographs
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class _Replacements(dict):
    """{code point: what stands for it}, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cf":
            character = ""
        elif category == "Cc" or category[0] in "PZ":
            character = " "
        elif any(first <= code <= last for first, last in _WITHOUT_SPACES) and category[0] != "M":
            character = f" {character}"
        self[code] = character
        return character


_REPLACEMENTS = _Replacements()


def words_of(text: str) -> list[str]:
    """The words of a text's normal form; at least one, unless the text is empty."""
    if text.isascii():
        folded = text.lower()
    else:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = folded.translate(_REPLACEMENTS).split()
    return words or ["".join(folded.split()) or text]


def normal_id(words: Sequence[str]) -> int:
    """64-bit hash of the normal form that has these words; never 0."""
    return text_id(" ".join(words))


_word_hash = functools.lru_cache(maxsize=CACHED_WORDS)(text_id)


def ngrams_of(texts: Sequence[Sequence[str]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(hash [M] uint64, text [M] int64) of each run of n words; a text of fewer than n words has none."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    count = int(lengths.sum()) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    words = np.fromiter((_word_hash(word) for text in texts for word in text), np.uint64, count + n - 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(n):  # modulo 2^64
        hashes = hashes * MULTIPLIER + words[offset : offset + count]
    owners = np.repeat(np.arange(len(texts)), lengths)
    whole = owners[:count] == owners[n - 1 :]
    return hashes[whole], owners[:count][whole]


def distinct(hashes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of ngrams_of, each once for each text; ordered by text and then by hash."""
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], owners[new]
