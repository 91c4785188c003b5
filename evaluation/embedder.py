"""Embeds the texts of all tasks of an evaluation, each distinct text once, over all devices of all processes.

Legend: n = texts, D = embedding width, H = processes.
"""

from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from data.examples import Prompts
from inference.encoder import Encoder
from model.files.modules import default_prompt, retrieval_prompts


class Embedder:
    """Embeds texts with one model and remembers them, so that no text is encoded twice in all the tasks of a run.

    Embeddings are those before normalisation: the squared error of translations needs them, and cosine ignores length.
    The model's default prompt, if it has one, is put before the texts. A teacher gets no prompts.
    """

    def __init__(self, encoder: Encoder, teacher: "Embedder | None" = None, *, is_teacher: bool = False):
        self.encoder = encoder
        self.teacher = teacher  # for tasks that compare the model's embeddings with a teacher's
        self.prompts: Prompts = retrieval_prompts(encoder.config)
        self._default_prompt = "" if is_teacher else default_prompt(encoder.config)
        self._row_of: dict[str, int] = {}
        self._embeddings = np.zeros((0, encoder.config.embedding_size), np.float32)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """[n, D] float32."""
        return self.prompted(self._with_default_prompt(texts))

    def prompted(self, texts: list[str]) -> np.ndarray:
        """[n, D] float32 of texts that have all their prompts already."""
        self._remember(texts)
        return self._embeddings[[self._row_of[text] for text in texts]]

    def remember(self, texts: Iterable[str], *, progress: bool = False) -> None:
        """Encodes the texts that are new, a share in each process. Every process must call it with the same texts."""
        self._remember(self._with_default_prompt(texts), progress=progress)

    def _with_default_prompt(self, texts: Iterable[str]) -> list[str]:
        prompt = self._default_prompt
        return [prompt + text.strip() for text in texts] if prompt else list(texts)

    def _remember(self, texts: Iterable[str], *, progress: bool = False) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._row_of]
        if not new:
            return
        share = new[jax.process_index()::jax.process_count()]
        embeddings = self.encoder.encode(share, prompt_name="", normalize=False, progress=progress)
        if jax.process_count() > 1:
            embeddings = _gather_shares(embeddings, len(new))
        first = len(self._embeddings)
        self._row_of |= {text: first + row for row, text in enumerate(new)}
        self._embeddings = np.concatenate([self._embeddings, embeddings])

    @property
    def texts(self) -> list[str]:
        """The distinct texts embedded so far, with their prompts."""
        return list(self._row_of)


def _gather_shares(embeddings: np.ndarray, total: int) -> np.ndarray:
    """Process i's rows i, i + H, i + 2H, ... of `total` -> all rows, in every process."""
    padded = np.zeros((-(-total // jax.process_count()), embeddings.shape[1]), np.float32)
    padded[:len(embeddings)] = embeddings
    gathered = multihost_utils.process_allgather(padded)  # [H, rows, D]
    return np.swapaxes(gathered, 0, 1).reshape(-1, embeddings.shape[1])[:total]
