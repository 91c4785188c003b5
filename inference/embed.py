"""Embed the lines of a text file: one embedding per line, in the order of the lines, as a .npy file.

In Python: Encoder.load(MODEL).encode(list of texts), in inference/encoder.py.
"""

import codecs
import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging

from data.files import new_file
from flags import REQUIRED, Error, flag
from inference.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers', or the WORKDIR of a "
                                "training run) or a hub id")
    input: str = flag(REQUIRED, "UTF-8 text file with one text per line; -: standard input")
    output: str = flag(REQUIRED, "FILE.npy that is written: float32, one row per line of --input")
    batch_tokens: int = flag(
        0, "tokens encoded at once on each device; 0: 2048 on CPUs, 32768 on other devices", minimum=0)
    dtype: Literal["float32", "bfloat16"] = flag("float32", "number format of activations and matrix products")
    prompt_name: str | None = flag(
        None, "which of the model's prompts is put before each text, query for example; empty: none; not given: the "
        "model's default prompt, if it has one")
    max_length: int = flag(
        0, "tokens per text that are read, special tokens included; at most what the position table holds. 0: as the "
        "model says", minimum=3, or_zero=True)


def embed(config: EmbedConfig) -> None:
    """Runs the command. Everything but the embeddings themselves is checked before the model is loaded.

    Raises flags.Error and ValueError for paths and lines that cannot be right, ValueError for embeddings that are not
    finite, OSError if the output cannot be written.
    """
    check_paths(config)
    texts = read_lines(config.input)
    with new_file(config.output) as file:  # made now, so that a place that is not writable costs no time
        encoder = Encoder.load(
            config.model, dtype=config.dtype, max_length=config.max_length, batch_tokens=config.batch_tokens
        )
        embeddings = encoder.encode(texts, prompt_name=config.prompt_name, progress=True)
        np.save(file, embeddings)
    logging.info("wrote %s: %d embeddings of %d", config.output, *embeddings.shape)


def check_paths(config: EmbedConfig) -> None:
    """Raises flags.Error for an --output that does not end in .npy, ValueError for paths that do not lead to a file."""
    output = Path(config.output)
    if output.is_dir():
        raise ValueError(f"--output={config.output} is a folder: name a file in it, embeddings.npy for example")
    if output.suffix != ".npy":
        raise Error(f"--output={config.output} does not end in .npy, the format that is written")
    if not output.parent.is_dir():
        raise ValueError(f"--output={config.output}: {output.parent} is not a folder; make it first")
    if config.input == "-":
        if sys.stdin is None:
            raise ValueError("--input=- reads standard input, which is closed: name a file, or pipe the texts in")
    elif Path(config.input).is_dir():
        raise ValueError(f"--input={config.input} is a folder: name a text file in it")
    elif not Path(config.input).exists():
        raise ValueError(f"--input={config.input} does not exist")


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for "-"; an empty line is the empty text.

    A byte-order mark is left out. Raises ValueError for an empty file and for a line that is not UTF-8.
    """
    name = "standard input" if path == "-" else path
    content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content:
        raise ValueError(f"{name} is empty: there is nothing to embed")
    texts = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: not UTF-8: {error}") from error
    return texts
