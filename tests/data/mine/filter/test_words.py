"""The normal form of a text, and n-grams."""

import unicodedata

import numpy as np
import pytest

from data.mine.filter.words import distinct, ngrams_of, words_of


@pytest.mark.parametrize(("text", "words"), [
    ("The  CAT, sat.", ["the", "cat", "sat"]),
    ("well-known_name", ["well", "known", "name"]),
    ("1.5 or 15", ["1", "5", "or", "15"]),
    ("a + b = $3", ["a", "+", "b", "=", "$3"]),
    ("Straße ﬁne Å", ["strasse", "fine", "å"]),
    ("co\u00adoperate\u200b \ufeffhere", ["cooperate", "here"]),
    ("\u00a0a\u3000b\x00c\u2028d", ["a", "b", "c", "d"]),
    ("कि की", ["कि", "की"]),
    ("猫は好き", ["猫", "は", "好", "き"]),
    ("résumé resume", ["résumé", "resume"]),
    ("?!", ["?!"]), ("« … »", ["«...»"]),
])
def test_words(text, words):
    assert words_of(text) == words


def test_every_plane_has_a_normal_form_that_stays():
    for start in range(0, 0x110000, 997 * 5):
        text = "".join(chr(code) for code in range(start, min(start + 997, 0x110000)) if not 0xD800 <= code < 0xE000)
        for form in ("NFC", "NFD", "NFKC"):
            words = words_of(unicodedata.normalize(form, text)) if text else []
            assert not text or words
            assert not any(unicodedata.category(character)[0] in "PZ" for word in words for character in word) or (
                len(words) == 1)


def test_ngrams_are_those_of_each_text():
    texts = [["a", "b", "c"], ["a"], [], ["a", "b", "a", "b"], ["b", "c"]]
    hashes, owners = ngrams_of(texts, 2)
    assert owners.tolist() == [0, 0, 3, 3, 3, 4]
    ab, bc, again, ba, last, other = hashes.tolist()
    assert ab == again == last and bc == other and len({ab, bc, ba}) == 3
    assert np.bincount(distinct(hashes, owners)[1], minlength=5).tolist() == [2, 0, 0, 2, 1]
    assert all(len(array) == 0 for array in ngrams_of([["a"], ["b", "c"]], 4))
    assert ngrams_of(texts, 1)[1].tolist() == [0, 0, 0, 1, 3, 3, 3, 3, 4, 4]
