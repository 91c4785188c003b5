"""What an evaluation asks of an encoder, and what it checks of the answer. No JAX here.

Legend: n texts, D width of the embeddings.
"""

from collections.abc import Callable, Sequence

import numpy as np

EncodeFunction = Callable[[list[str]], np.ndarray]  # n texts -> [n, D]


def embeddings_of(encode: EncodeFunction, texts: list[str]) -> np.ndarray:
    """Embeddings [n, D] float32 as encode gives them; ValueError if they are not one for each text, or not finite."""
    embeddings = np.asarray(encode(texts), np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        raise ValueError(f"encode gave {embeddings.shape} for {len(texts)} texts; expected [{len(texts)}, D]")
    require_finite(np.isfinite(embeddings).all(axis=1), texts)
    return embeddings


def require_finite(
    is_finite: np.ndarray,  # [n] bool
    texts: Sequence[str],
    advice: Callable[[], str] = lambda: "",
) -> None:
    """Raises ValueError, which ends with the advice, if the embeddings of some texts are not finite."""
    bad = np.flatnonzero(~is_finite)
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(texts)} embeddings are not finite, first that of "
                         f"{texts[bad[0]][:80]!r}{advice()}")


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Each of the embeddings [n, D] divided by its length; zero stays zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)


def unit_embeddings(encode: EncodeFunction, texts: list[str]) -> np.ndarray:
    """Embeddings [n, D] float32 of unit length (see embeddings_of)."""
    return unit_length(embeddings_of(encode, texts))
