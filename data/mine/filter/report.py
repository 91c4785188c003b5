"""What filter removed: filter_report.json for programs, and filter_report.md and the terminal for people."""

from collections.abc import Iterable
from typing import Any

LONGEST_TEXT = 120  # characters of a text in filter_report.md


def tables_of(report: dict[str, Any]) -> str:
    """The tables of a report, in Markdown: data sets, what was found in which evaluation set, duplicates."""
    parts = [_table(("data set", "lines", "bad", "in evaluation sets", "duplicates", "shortened", "kept"), [
        (each["name"], each["lines"], sum(each["bad_lines"].values()), each["removed"]["evaluation"],
         each["removed"]["duplicate"], sum(each["shortened"].values()), each["kept"])
        for each in report["datasets"]])]
    found = [(each["name"], name, *counts.values())
             for each in report["datasets"] for name, counts in each["evaluation"].items()]
    if found:
        parts.append(_table(
            ("data set", "evaluation set", "examples", "texts that match", "texts that overlap"), found))
    elif report["evaluation_sets"]:
        parts.append("No text of the data sets is in the evaluation sets.")
    repeated = [(each["name"], "itself" if name == each["name"] else name, count)
                for each in report["datasets"] for name, count in each["duplicate_of"].items()]
    if repeated:
        parts.append(_table(("data set", "has duplicates of", "examples"), repeated))
    return "\n\n".join(parts)


def markdown_of(report: dict[str, Any]) -> str:
    """filter_report.md: the rules, the tables, and some of what was found."""
    rules = [f"* `--{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}`"
             for name, value in report["settings"].items()]
    evaluation = [(name, count) for name, count in report["evaluation_sets"].items()]
    parts = ["# What was filtered", "\n".join(rules), tables_of(report)]
    if evaluation:
        parts.append(_table(("evaluation set", "texts"), evaluation))
    examples = [_example(each["name"], example) for each in report["datasets"] for example in each["examples"]]
    if examples:
        parts += ["## Examples", "The first of each data set and each place.", "\n".join(examples)]
    return "\n\n".join(parts) + "\n"


def _example(name: str, example: dict[str, Any]) -> str:
    text = _shown(example["text"])
    if example["reason"] == "duplicate":
        return f"* {name}:{example['line']} is a duplicate of {example['found_in']}:{example['winner_line']}: {text}"
    how = f"shares {example['common_ngrams']} of {example['of']} n-grams with" if example["of"] else "matches"
    return (f"* {name}:{example['line']} {how} {example['found_in']}, line {example['evaluation_line']}: {text} "
            f"and {_shown(example['evaluation_text'])}")


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= LONGEST_TEXT else line[:LONGEST_TEXT] + "...")


def _table(head: tuple[str, ...], rows: Iterable[tuple]) -> str:
    cells = [head, *(tuple(f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row)
                     for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    numbers = [all(_is_number(row[column]) for row in cells[1:]) for column in range(len(head))]
    lines = [" | ".join(cell.rjust(width) if number else cell.ljust(width)
                        for cell, width, number in zip(row, widths, numbers)) for row in cells]
    rule = "|".join("-" * (width + 1) + (":" if number else "-") for width, number in zip(widths, numbers))
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").isdigit()
