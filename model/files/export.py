"""Export a model as a folder that sentence-transformers loads, model card included.

The folder holds the transformer at its root (config.json, model.safetensors, tokenizer), modules.json, one folder for
each of Pooling, Dense and Normalize, and README.md. Weights are float32.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from data.files import copy_files, new_folder
from data.tokenizer import load_tokenizer
from flags import REQUIRED, flag
from model.config import ModelConfig
from model.files.convert import write_hugging_face
from model.files.folders import find_model
from model.files.modules import retrieval_prompts
from model.files.weights import LoadedModel, Origin, load_model
from model.parameters import Tree

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class ExportConfig:
    source: str = flag(REQUIRED, "WORKDIR of a training run, whose best model is copied, or another MODEL: a folder or "
                                 "a hub id")
    target: str = flag(REQUIRED, "new folder that is written, for sentence-transformers")


@dataclass(frozen=True)
class ModelCard:
    """What README.md says of the model besides its sizes. A field that is empty leaves its section out."""

    name: str
    base_model: str = ""  # MODEL that training started from, or "random weights"
    datasets: tuple[tuple[str, int], ...] = ()  # (name, examples)
    recipe: tuple[tuple[str, str], ...] = ()  # (flag, value) of the training run
    scores: tuple[tuple[str, str, float], ...] = ()  # (task, metric, value)
    license: str = ""  # as the hub names it, "apache-2.0"
    language: str = ""  # "en"


def export(config: ExportConfig) -> None:
    """Copies a run's best model, or writes any MODEL as a sentence-transformers folder."""
    folder = find_model(config.source)
    if folder == Path(config.source) / "export":
        with new_folder(config.target) as written:
            copy_files(folder, written)
    else:
        model = load_model(folder)
        card = ModelCard(name=Path(config.source).name)
        export_sentence_transformers(config.target, model.config, model.parameters, model.tokenizer_folder, card)
    logging.info("exported %s to %s", config.source, config.target)


def export_sentence_transformers(
    folder: str | os.PathLike,
    config: ModelConfig,
    parameters: Tree,
    tokenizer_folder: str | os.PathLike,
    card: ModelCard,
    *,
    replace: bool = False,
) -> None:
    """Writes the folder, complete or not at all.

    Raises ValueError if it exists with files in it, unless `replace` is set, and OSError if it cannot be written.
    """
    with new_folder(folder, replace=replace) as written:
        load_tokenizer(tokenizer_folder).to_folder(
            written, model_max_length=config.max_length, model_input_names=["input_ids", "attention_mask"])
        write_hugging_face(written, LoadedModel(config, parameters, Path(tokenizer_folder), Origin({}, {})))
        (written / "README.md").write_text(model_card(config, parameters, card), encoding="utf-8")


def model_card(config: ModelConfig, parameters: Tree, card: ModelCard) -> str:
    """README.md: a YAML header for the hub, how to use the model, what it is, data, recipe and scores."""
    sections = [_header(card), f"# {card.name}\n", _summary(config, parameters, card), _usage(config, card)]
    if card.scores:
        rows = [(task, metric, f"{value:.2f}") for task, metric, value in card.scores]
        sections.append("## Scores\n\n" + _table(("task", "metric", "value"), rows))
    if card.datasets:
        rows = [(name, f"{count:,}") for name, count in card.datasets]
        sections.append("## Training data\n\n" + _table(("dataset", "examples"), rows))
    if card.recipe:
        sections.append("## Training recipe\n\n```\n" + "\n".join(f"--{k}={v}" for k, v in card.recipe) + "\n```\n")
    return "\n".join(sections)


def _header(card: ModelCard) -> str:
    lines = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines += ["tags:", *(f"- {tag}" for tag in ("sentence-transformers", "feature-extraction", "sentence-similarity"))]
    if card.language:
        lines.append(f"language: {card.language}")
    if card.license:
        lines.append(f"license: {card.license}")
    if _HUB_ID.fullmatch(card.base_model) and not Path(card.base_model).exists():
        lines.append(f"base_model: {card.base_model}")
    return "\n".join(["---", *lines, "---", ""])


def _summary(config: ModelConfig, parameters: Tree, card: ModelCard) -> str:
    encoder = config.encoder
    count = sum(np.size(leaf) for group in parameters.values() for leaf in group.values())
    heads = "".join(
        ", L2 normalisation" * head.normalize_input
        + f", Dense {head.in_features} -> {head.out_features} ({head.activation})" for head in config.dense)
    return (
        f"Maps a sentence or paragraph to a vector of {config.embedding_size} numbers; the cosine of two vectors says "
        "how close the texts are in meaning.\n\n"
        f"* Encoder: {encoder.family}, {encoder.num_layers} layers of {encoder.hidden_size}, "
        f"{count / 1e6:.1f} million parameters\n"
        f"* Head: {config.pooling} pooling{heads}{', L2 normalisation' if config.normalize else ''}\n"
        f"* Longest text: {config.max_length} tokens; longer ones are cut\n"
        + (f"* Trained from: {card.base_model}\n" if card.base_model else "")
    )


def _usage(config: ModelConfig, card: ModelCard) -> str:
    if any(retrieval_prompts(config)):
        encode = """queries = model.encode_query(["Who plays the guitar?"])
documents = model.encode_document(["A man is playing a guitar.", "A dog runs."])
print(model.similarity(queries, documents))"""
    else:
        encode = """embeddings = model.encode(["A man is playing a guitar.", "Someone plays an instrument."])
print(model.similarity(embeddings, embeddings))"""
    return f"""## How to use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # the path of this folder: run it here, or name another path
{encode}
```
"""


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
