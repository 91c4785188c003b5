"""Views: which texts of an example are encoded. Two versions of one text can replace a pair (SCT, SimCSE).

    given         the texts of the example: nothing is done here
    single        its first text, once
    identical     its first text, twice: the views differ only by the encoder's dropout
    word_dropout  each word piece is left out with probability `rate`, never all of them
    crop          a contiguous span of the word pieces at a random place: a share 1 - rate of them, at least one

SCT's published numbers need "given": back-translations En-De-En and En-Fr-En of each sentence, as a .tsv file of two
columns. "identical" is its ablation of that name. The other two replace a translation service if there is none; SCT
published no number for them. HPD encodes each text once: "single".

Views are made from the word pieces of the truncated text; special tokens stay. The draw is a pure function of a view's
stream of random words, one per word piece: it does not depend on the host or on how texts are packed.
"""


import numpy as np

from data.drawing import RaggedTexts
from data.mixture import random_words
from data.settings import Views
from data.shards import ragged_arange

TEXTS_PER_EXAMPLE = {"single": 1, "identical": 2, "word_dropout": 2, "crop": 2}


def check_view_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"view_rate={rate} is not in [0, 1)")


def make_views(texts: RaggedTexts, views: Views, rate: float, streams: np.ndarray) -> RaggedTexts:
    """The texts with the word pieces that their views keep; their ids stay. No text may be an empty slot.

    streams [M] uint64: the state that the random words of each text's view start from.
    """
    if views in ("single", "identical"):
        return texts
    inner = texts.lengths - 2
    kept = {"word_dropout": drop_words, "crop": crop}[views](inner, rate, streams)
    starts = np.cumsum(texts.lengths) - texts.lengths
    mask = np.ones(len(texts.tokens), bool)
    mask[np.repeat(starts + 1, inner) + ragged_arange(inner)] = kept
    return texts._replace(tokens=texts.tokens[mask], lengths=np.add.reduceat(mask, starts, dtype=np.int64))


def drop_words(lengths: np.ndarray, rate: float, streams: np.ndarray) -> np.ndarray:
    """[sum of lengths] bool: which word pieces stay; a text that would lose all keeps one at random."""
    words = random_words(np.repeat(streams, lengths), ragged_arange(lengths))
    kept = words >= np.uint64(rate * 2.0**64)
    starts = np.cumsum(lengths) - lengths
    empty = ~np.logical_or.reduceat(kept, starts)
    kept[(starts + draw_below(lengths, streams, lengths))[empty]] = True
    return kept


def crop(lengths: np.ndarray, rate: float, streams: np.ndarray) -> np.ndarray:
    """[sum of lengths] bool: a span of max(1, round((1 - rate) * length)) word pieces of each text."""
    spans = np.maximum(1, np.rint((1 - rate) * lengths)).astype(np.int64)
    firsts = np.repeat(draw_below(lengths - spans + 1, streams, lengths), lengths)
    places = ragged_arange(lengths)
    return (firsts <= places) & (places < firsts + np.repeat(spans, lengths))


def draw_below(bounds: np.ndarray, streams: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """An integer in 0 .. bounds[i] - 1 from word numbers[i] of each stream: [M] int64."""
    return (random_words(streams, numbers) % bounds.astype(np.uint64)).astype(np.int64)
