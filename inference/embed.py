"""Embed the lines of a text file: one embedding a line, in order, as a .npy file.

From Python it is Encoder.load(MODEL).encode(list of texts), in inference/encoder.py.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging

from data.files import new_file
from flags import REQUIRED, flag
from inference.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers') or a hub id")
    input: str = flag(REQUIRED, "text file, UTF-8, one text a line; - is standard input")
    output: str = flag(REQUIRED, "FILE.npy to write: float32 [lines, d]")
    batch_tokens: int = flag(
        0, "tokens encoded at once on each device; 0: 2048 on CPUs, 32768 on other devices", minimum=0)
    dtype: Literal["float32", "bfloat16"] = flag("float32", "compute dtype")
    prompt_name: str = flag("", "which of the model's prompts is put before each text (query, for one); empty: none")
    max_length: int = flag(
        0, "tokens per text that are read, special tokens included; at most what the position table holds. 0: as the "
        "model says", minimum=3, or_zero=True)


def embed(config: EmbedConfig) -> None:
    """Runs the command; raises ValueError for a line that is no UTF-8 and OSError if the output cannot be written."""
    with new_file(config.output) as file:  # made first, so that a place that is not writable costs no time
        texts = read_lines(config.input)
        encoder = Encoder.load(
            config.model, dtype=config.dtype, max_length=config.max_length, batch_tokens=config.batch_tokens
        )
        embeddings = encoder.encode(texts, prompt_name=config.prompt_name, progress=True)
        np.save(file, embeddings)
    logging.info("wrote %s: %d embeddings of %d", config.output, *embeddings.shape)


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for "-"; an empty line is the empty text."""
    name = "standard input" if path == "-" else path
    content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    if not content:
        raise ValueError(f"{name} is empty: there is nothing to embed")
    texts = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: not UTF-8: {error}") from error
    return texts
