"""Cuts the bundled sample, data/sample/, from openly licensed files, and trains its tokenizer.

    python -m data.cut_sample --source=DIR [--target=data/sample]

DIR has train/, multilingual/, eval/stsb.tsv and licenses/stackexchange_sources.tsv. The cut is a pure function of those
files: examples are taken in the order of a hash of their first text. (The tokenizer is not: the library's trainer
breaks ties in no fixed order, so a few of its word pieces differ from run to run.) No text of STS-B (any split) and
none of the held-out pairs is in the training part, compared without case, spaces and punctuation.
"""

import argparse
import gzip
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tokenizers import models, trainers

from data.shards import text_id
from data.tokenizer import TextTokenizer, bert_tokenizer

VOCABULARY_SIZE = 8192
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OPEN_STS_SOURCES = ("main-captions/images/", "main-forums/answers-forums/")
MODEL_CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,  # a few passes over the sample from random weights: nothing to regularise
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "pad_token_id": 0,
}


class Part(NamedTuple):
    """One file of the sample."""

    name: str
    source: str  # file below --source
    kind: str  # pair, triplet, set or lists
    limit: int  # training examples
    held_out: int  # held-out pairs
    weight: int
    max_characters: int  # of an example's longest text
    licence: str
    origin: str
    change: str


PARTS = (
    Part("snli_triplets", "train/snli_dev_triplets.jsonl.gz", "triplet", 3000, 200, 6, 400,
         "CC BY-SA 4.0", "SNLI dev set (Stanford NLP Group), by OanaMariaCamburu/e-SNLI@7b585a3f077f",
         "premise, entailed and contradicted hypothesis"),
    Part("squad_sentence_questions", "train/squad_question_sentence.jsonl.gz", "lists", 9000, 300, 6, 400,
         "CC BY-SA 4.0 (text: SQuAD 1.1, Wikipedia); code MIT", "xinyadu/nqg@8211129a3e97",
         "the questions of one sentence gathered as its positives"),
    Part("disflqa", "train/disflqa.jsonl.gz", "pair", 6000, 150, 2, 400,
         "CC BY 4.0", "google-research-datasets/Disfl-QA@1f0c16171c77", "disfluent and fluent question"),
    Part("wikisplit", "train/wikisplit.jsonl.gz", "pair", 4000, 150, 2, 320,
         "CC BY-SA 4.0", "google-research-datasets/wiki-split@80f5bddf42d1", "a sentence and its split into two"),
    Part("stackexchange_title_body", "train/stackexchange_title_body.jsonl.gz", "pair", 2000, 200, 2, 600,
         "CC BY-SA 2.5 to 4.0 (Stack Exchange contributors)", "small Stack Exchange sites, listed below",
         "title and short body of a question"),
    Part("stackexchange_linked_titles", "train/stackexchange_linked_titles.jsonl.gz", "pair", 2000, 0, 1, 400,
         "CC BY-SA 2.5 to 4.0 (Stack Exchange contributors)", "small Stack Exchange sites, listed below",
         "titles of linked questions"),
    Part("ntrex_english", "multilingual/ntrex128.jsonl.gz", "set", 2000, 0, 1, 400,
         "CC BY-SA 4.0", "MicrosoftTranslator/NTREX@8561f6a622db",
         "the British, Indian and US English versions of a sentence, where they differ"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with train/, eval/ and so on")
    parser.add_argument("--target", type=Path, default=Path(__file__).parent / "sample", help="folder to write anew")
    arguments = parser.parse_args()
    cut_sample(arguments.source, arguments.target)


def cut_sample(source: Path, target: Path) -> None:
    """Writes the whole sample below target, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "train").mkdir(parents=True)
    sts_header, *sts_rows = [line.split("\t") for line in (source / "eval" / "stsb.tsv").read_text().splitlines()]
    sts_texts = {normalised(text) for row in sts_rows for text in row[:2]}
    held_out, training = split_parts({part: read_part(source, part) for part in PARTS}, sts_texts)
    write_lines(target / "heldout.jsonl.gz", held_out)
    for part, examples in training.items():
        write_lines(target / "train" / f"{part.name}.jsonl.gz", [as_line(part.kind, texts) for texts in examples])
    entries = [
        {"name": f"{part.name}.jsonl.gz", "lines": len(examples), "weight": part.weight}
        for part, examples in training.items()
    ]
    (target / "data_config.json").write_text(json.dumps(entries, indent=1) + "\n")
    sts_dev = [row for row in sts_rows if row[3] == "dev" and row[4].startswith(OPEN_STS_SOURCES)]
    (target / "sts_dev.tsv").write_text("".join("\t".join(row) + "\n" for row in [sts_header, *sts_dev]))
    write_model(target / "model", [text for examples in training.values() for texts in examples for text in texts])
    sites = (source / "licenses" / "stackexchange_sources.tsv").read_text().splitlines()[1:]
    (target / "README.md").write_text(readme(training, len(held_out), len(sts_dev), sites))


def normalised(text: str) -> str:
    """What is left of a text without case, spaces and punctuation: equal for texts that are the same to a reader."""
    return "".join(character for character in text.casefold() if character.isalnum())


def read_part(source: Path, part: Part) -> list[tuple[str, ...]]:
    """The texts of each example of a part's source file (query, positives, negatives), in the order of a hash."""
    with gzip.open(source / part.source, "rt") as file:
        rows = [json.loads(line) for line in file]
    if part.kind == "set":
        versions = [[row[key].strip() for key in ("eng-GB", "eng-IN", "eng-US")] for row in rows]
        examples = [tuple({normalised(text): text for text in texts}.values()) for texts in versions]
    elif part.kind == "lists":
        questions: dict[str, list[str]] = {}
        for question, sentence in rows:
            questions.setdefault(sentence.strip(), []).append(question.strip())
        examples = [(sentence, *dict.fromkeys(asked)) for sentence, asked in questions.items()]
    else:
        examples = [tuple(text.strip() for text in row) for row in rows]
    kept = {
        texts for texts in examples
        if len({normalised(text) for text in texts} - {""}) == len(texts) > 1
        and max(map(len, texts)) <= part.max_characters
    }
    return sorted(kept, key=lambda texts: (text_id(texts[0]), texts))


def split_parts(
    parts: dict[Part, list[tuple[str, ...]]], sts_texts: set[str]
) -> tuple[list[list[str]], dict[Part, list[tuple[str, ...]]]]:
    """Held-out pairs of texts that occur once among them, and training examples that share no text with them or STS."""
    held_out, held_out_texts = [], set()
    for part, examples in parts.items():
        taken = 0
        for texts in examples:
            pair = {normalised(text) for text in texts[:2]}
            if taken < part.held_out and not pair & (held_out_texts | sts_texts):
                held_out.append(list(texts[:2]))
                held_out_texts |= pair
                taken += 1
    forbidden = held_out_texts | sts_texts
    training = {
        part: [texts for texts in examples if not forbidden & {normalised(text) for text in texts}][: part.limit]
        for part, examples in parts.items()
    }
    return held_out, training


def as_line(kind: str, texts: tuple[str, ...]) -> object:
    """An example as the JSON value of its line (data/formats.py)."""
    if kind == "set":
        return {"set": list(texts)}
    if kind == "lists":
        return {"query": texts[0], "pos": list(texts[1:])}
    return list(texts)


def write_lines(path: Path, values: Iterable[object]) -> None:
    lines = "".join(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n" for value in values)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


def write_model(folder: Path, texts: list[str]) -> None:
    """A WordPiece tokenizer trained on the texts, and the config.json of a small BERT of random weights."""
    special_ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = bert_tokenizer(models.WordPiece(special_ids, unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE, min_frequency=2, limit_alphabet=200, special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = TextTokenizer(tokenizer)
    trained.to_folder(folder)
    config = MODEL_CONFIG | {"vocab_size": trained.vocab_size}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def readme(training: dict[Part, list], num_held_out: int, num_sts: int, sites: list[str]) -> str:
    """data/sample/README.md: what each file is, its licence and its source."""
    rows = [
        f"| train/{part.name}.jsonl.gz | {part.kind} | {len(examples):,} | {part.weight} "
        f"| {part.licence} | {part.origin} | {part.change} |"
        for part, examples in training.items()
    ]
    held_out = ", ".join(f"{part.name} ({part.held_out})" for part in training if part.held_out)
    columns = [site.split("\t") for site in sites]
    site_list = "\n".join(f"* {site[0]}: {site[1]}@{site[2]}" for site in columns)
    table = "\n".join(rows)
    return f"""# The sample

`python -m data.cut_sample` wrote this folder. The texts are other people's, under the licences named here. Each file is
a selection of its source, in the order of a hash, without texts above a length; nothing was reworded. Files under a
share-alike licence stay under it.

| file | kind | examples | weight | licence | source | what it is |
|---|---|---|---|---|---|---|
{table}

* `data_config.json`: the files above with their weights.
* `heldout.jsonl.gz`: {num_held_out:,} held-out pairs, under the licences of their sources, {held_out}.
  None of their texts is in the training part.
* `sts_dev.tsv`: **STS-B dev, openly licensed part**: the {num_sts} rows of the STS Benchmark's dev set whose text is
  openly licensed: images (PASCAL VOC-2008 image captions, CC BY-SA) and answers-forums (Stack Exchange contributors,
  CC BY-SA 3.0). The scores are CC BY-SA 4.0 (SemEval-2017 task 1, Cer et al.). This is not the whole dev set, so scores
  on it do not compare with published ones. No text of STS-B is in the training part.
* `model/`: a WordPiece tokenizer trained on the training texts and the config.json of a small BERT. There are no
  weights: training starts from random ones.

Licences: [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/),
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/),
[CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/),
[CC BY-SA 2.5](https://creativecommons.org/licenses/by-sa/2.5/).

Stack Exchange sites and the repositories their dumps were taken from:

{site_list}
"""


if __name__ == "__main__":
    main()
