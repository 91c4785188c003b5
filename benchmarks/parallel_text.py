"""Cuts parallel text and cross-lingual STS files from STS-B and its translations.

    python -m benchmarks.parallel_text --source=DIR --target=DIR [--languages=de,es,fr,zh]

SOURCE has eval/stsb.tsv and multilingual/stsb_multi_mt.jsonl.gz, {"lang", "split", "sentence1", "sentence2", "score"}
in STS-B's order. It writes

    TARGET/train/stsb.tsv.gz                             English and translations: prepare --tsv=parallel --tsv_header
    TARGET/parallel/stsb_dev.tsv.gz, stsb_test.tsv.gz    the same of the held-out splits: evaluate --parallel
    TARGET/eval/stsb_en-de.tsv, ...                      English, German, score, split: evaluate --suite

Each English sentence occurs once in a file, with its first translation. No sentence of dev or test is in train, even
if case, spaces and punctuation are ignored.
"""

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from data.cut_sample import normalised
from evaluation.files.lines import numbered_lines
from evaluation.tasks.sts import StsPair, read_sts

LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
SPLITS = ("train", "dev", "test")

Pairs = dict[str, list[StsPair]]  # by split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with eval/ and multilingual/")
    parser.add_argument("--target", type=Path, required=True, help="folder to write to")
    parser.add_argument("--languages", default=",".join(LANGUAGES), help="comma-separated; default: %(default)s")
    arguments = parser.parse_args()
    cut_parallel_text(arguments.source, arguments.target, arguments.languages.split(","))


def cut_parallel_text(source: Path, target: Path, languages: list[str]) -> None:
    """Raises ValueError if a language is not there, or if its rows are not those of STS-B."""
    english = {split: read_sts(source / "eval" / "stsb.tsv", split) for split in SPLITS}
    translated = read_translations(source / "multilingual" / "stsb_multi_mt.jsonl.gz", languages)
    for language, pairs in translated.items():
        for split in SPLITS:
            scores = [[round(pair.score, 2) for pair in rows] for rows in (pairs[split], english[split])]
            if scores[0] != scores[1]:
                raise ValueError(f"{language} {split}: the scores of {len(pairs[split])} rows are not, in order, those "
                                 f"of the {len(english[split])} in English")
    held_out = {normalised(text) for split in ("dev", "test") for text, *_ in parallel_rows(english, {}, split)}
    for split in SPLITS:
        rows = parallel_rows(english, translated, split)
        if split == "train":
            rows = [row for row in rows if normalised(row[0]) not in held_out]
        name = "train/stsb.tsv.gz" if split == "train" else f"parallel/stsb_{split}.tsv.gz"
        write_table(target / name, [("en", *languages), *rows])
    for language, pairs in translated.items():
        write_table(target / "eval" / f"stsb_en-{language}.tsv", [
            ("sentence1", "sentence2", "score", "split"),
            *((pair.sentence1, other.sentence2, f"{pair.score:g}", split)
              for split in SPLITS for pair, other in zip(english[split], pairs[split])),
        ])


def read_translations(path: Path, languages: list[str]) -> dict[str, Pairs]:
    translated = {language: {split: [] for split in SPLITS} for language in languages}
    for _, line in numbered_lines(path):
        row = json.loads(line)
        if row["lang"] in translated:
            pair = StsPair(row["sentence1"], row["sentence2"], row["score"])
            translated[row["lang"]][row["split"]].append(pair)
    return translated


def parallel_rows(english: Pairs, translated: dict[str, Pairs], split: str) -> list[tuple[str, ...]]:
    """(English sentence, its translations) of the split's distinct sentences, in order."""
    rows = {}
    for pairs in zip(english[split], *(pairs[split] for pairs in translated.values())):
        for column in ("sentence1", "sentence2"):
            texts = tuple(getattr(pair, column).strip() for pair in pairs)
            rows.setdefault(texts[0], texts)
    return list(rows.values())


def write_table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join("\t".join(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


if __name__ == "__main__":
    main()
