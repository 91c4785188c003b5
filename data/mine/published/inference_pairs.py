"""Labelled sentence pairs: AllNLI (SNLI and MultiNLI) and PAWS."""

import io
from typing import Any

from data.mine.published.records import (
    BadRecord,
    Layout,
    Records,
    Results,
    first_byte,
    json_lines,
    one_line,
    pair,
    results_of,
    tab_table,
    text,
)
from data.mine.source import Counts, NoSettings, Unit


def _json_or_table(file: io.BufferedReader, counts: Counts) -> Records:
    return (json_lines if first_byte(file) == b"{" else tab_table)(file, counts)


ALL_NLI = Layout("SNLI's snli_1.0_train and MultiNLI's multinli_1.0_train, .jsonl or .txt, or their zip files, with "
                 "gold_label, sentence1 and sentence2", _json_or_table, r"_train\.jsonl$")
LABELS = ("entailment", "neutral", "contradiction")


def scatter_all_nli(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(premise, [premise, label, hypothesis])."""
    def convert(record: Any) -> Results:
        label = text(record, "gold_label")
        premise, hypothesis = one_line(text(record, "sentence1")), one_line(text(record, "sentence2"))
        if label in ("-", ""):
            counts["annotators who do not agree: the gold label is -"] += 1
        elif label not in LABELS:
            raise BadRecord(f"field 'gold_label' is {label[:20]!r}, not -, {', '.join(LABELS)}")
        elif label == "neutral":
            counts["neutral hypothesis"] += 1
        elif not premise or not hypothesis:
            counts["empty sentence"] += 1
        else:
            yield premise, [premise, label, hypothesis]
    return results_of(unit, ALL_NLI, counts, convert)


def join_all_nli(records: list[Any], settings: NoSettings, counts: Counts) -> Results:
    """(premise, entailed sentence, contradiction) for each entailed sentence of a premise."""
    premise = records[0][0]
    entailed, contradicted = [
        list(dict.fromkeys(hypothesis for _, given, hypothesis in records if given == label))
        for label in ("entailment", "contradiction")]
    if not entailed or not contradicted:
        counts["premise without an entailed sentence" if not entailed else "premise without a contradiction"] += 1
    for number, hypothesis in enumerate(entailed if contradicted else []):
        yield "AllNLI", [premise, hypothesis, contradicted[number % len(contradicted)]]


PAWS = Layout("PAWS' train.tsv or paws_wiki_labeled_final.tar.gz, or PAWS-X's translated_train.tsv, with the columns "
              "sentence1, sentence2 and label (or noisy_label)", tab_table, r"(^|/)(translated_)?train\.tsv$")


def mine_paws(unit: Unit, settings: NoSettings, counts: Counts) -> Results:
    """(sentence, paraphrase) of the rows with label 1."""
    def convert(row: Any) -> Results:
        first, second = text(row, "sentence1"), text(row, "sentence2")
        label = text(row, "noisy_label" if "noisy_label" in row else "label")
        if label not in ("0", "1"):
            raise BadRecord(f"has the label {label[:20]!r}, neither 0 nor 1")
        if label == "0":
            counts["not a paraphrase"] += 1
        else:
            yield from pair("paws", first, second, counts, "empty sentence")
    return results_of(unit, PAWS, counts, convert)
