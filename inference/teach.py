"""Embed every text of a prepared folder with a frozen teacher, and keep the embeddings beside the tokens.

    python main.py teach --teacher=MODEL --source_dir=SRC --data_dir=DIR

The teacher reads the source texts with its own tokenizer and without any prompt: prompts are the student's, which
learns to give the embedding of the text by itself. The embeddings are written as the teacher's last head gives them,
not normalised (format and checks: data/teacher_store.py). The last line that is printed names the teacher's
fingerprint, by which the loader finds them. Run again, the same command skips the datasets that are finished.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from data.mixture import read_data_config
from data.shards import open_dataset, read_manifest
from data.teacher_store import (
    DTYPES,
    FORMAT_VERSION,
    ExampleTexts,
    encode_embeddings,
    is_finished,
    read_texts,
    require_same_source,
    write_embeddings,
)
from data.tokenizer import load_tokenizer
from flags import REQUIRED, flag
from inference.encoder import Encoder
from model.files.weights import load_model, model_fingerprint

WINDOW_TEXTS = 1 << 14  # embedded at once and held in memory: 64 MiB at width 1024


@dataclasses.dataclass(frozen=True)
class TeachConfig:
    teacher: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers', or the WORKDIR of a "
                                  "training run) or a hub id")
    source_dir: str = flag(REQUIRED, "folder of training files that data_dir was prepared from")
    data_dir: str = flag(REQUIRED, "folder that `prepare` wrote; DATA_DIR/<dataset>/teacher-<fingerprint>/ is written")
    data_config: str = flag("", "file with a JSON list of {name, lines, weight}: the datasets to embed; empty: all")
    texts: Literal["all", "first"] = flag(
        "all", "texts of each example that are embedded. all: each of them (SCT); first: the query (HPD, multilingual "
        "distillation)")
    dtype: Literal["float32", "float16"] = flag("float32", "number format in which embeddings are stored")
    teacher_dtype: Literal["float32", "bfloat16"] = flag(
        "float32", "number format of the teacher's activations and matrix products")
    pooling: Literal["", "mean", "cls", "max", "pooler"] = flag(
        "", "pooling of the teacher's tokens; empty: as --teacher says")
    batch_tokens: int = flag(
        0, "tokens encoded at once on each device; 0: 2048 on CPUs, 32768 on other devices", minimum=0)


def teach(config: TeachConfig) -> None:
    """Runs the command. Raises ValueError, before any work, for a folder, a source or a teacher that do not fit."""
    names = list(read_data_config(config.data_config)) if config.data_config else [
        dataset["name"] for dataset in read_manifest(config.data_dir)["datasets"]
    ]
    datasets = [open_dataset(config.data_dir, name) for name in names]
    model, parameters, tokenizer_folder, _ = load_model(config.teacher)
    model = dataclasses.replace(model, pooling=config.pooling or model.pooling)
    tokenizer = load_tokenizer(tokenizer_folder)
    description = {
        "format": FORMAT_VERSION,
        "teacher": config.teacher,
        "fingerprint": model_fingerprint(model, parameters, tokenizer),
        "width": model.embedding_size,
        "normalize": model.normalize,
        "texts": config.texts,
        "dtype": config.dtype,
        "teacher_dtype": config.teacher_dtype,
    }
    waiting = [dataset for dataset in datasets if not is_finished(config.data_dir, dataset, description)]
    for dataset in waiting:
        require_same_source(config.source_dir, dataset)
    encoder = Encoder(
        model, parameters, tokenizer, dtype=config.teacher_dtype, batch_tokens=config.batch_tokens
    )
    total, done = (sum(map(len, some)) for some in (datasets, set(datasets) - set(waiting)))
    student_tokenizer = load_tokenizer(Path(config.data_dir) / "tokenizer")
    with tqdm(total=total, initial=done, desc="teach", unit="example") as bar:
        for dataset in waiting:
            examples = read_texts(config.source_dir, dataset, student_tokenizer)
            records = embed_examples(encoder, examples, config.texts, DTYPES[config.dtype], dataset.name, bar)
            write_embeddings(config.data_dir, dataset, description, records)
    print(f"{len(datasets)} datasets of {total:,} examples ({len(datasets) - len(waiting)} were finished)\n"
          f"teacher {description['fingerprint']}: {config.texts} texts, width {model.embedding_size}, {config.dtype}")


def embed_examples(
    encoder: Encoder, examples: Iterator[ExampleTexts], texts: str, dtype: np.dtype, name: str, bar: tqdm
) -> Iterator[bytes]:
    """The record of each example. A text that occurs more than once in a window is embedded once."""
    if texts == "first":
        examples = (ExampleTexts(example.texts[:1], example.text_ids[:1]) for example in examples)
    for window in windows(examples):
        embeddings = encoder.encode(
            [text for example in window for text in example.texts], prompt_name="", normalize=False)
        with np.errstate(over="ignore"):
            embeddings = embeddings.astype(dtype)
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            text = [text for example in window for text in example.texts][np.argmin(finite)]
            raise ValueError(f"{name}: the teacher's embedding of {text[:80]!r} is not finite in {dtype.name}")
        start = 0
        for example in window:
            stop = start + len(example.texts)
            yield encode_embeddings(example.text_ids, embeddings[start:stop])
            start = stop
        bar.update(len(window))


def windows(examples: Iterable[ExampleTexts]) -> Iterator[list[ExampleTexts]]:
    """Examples in groups of about WINDOW_TEXTS texts."""
    window, num_texts = [], 0
    for example in examples:
        window.append(example)
        num_texts += len(example.texts)
        if num_texts >= WINDOW_TEXTS:
            yield window
            window, num_texts = [], 0
    if window:
        yield window
