"""The HTML page of `main.py inspect`: the tables of its text, and the lengths drawn."""

import html

import plotly.graph_objects as graph

from data.inspection import Inspection
from evaluation.report import charts
from evaluation.report.inspect import (
    batch_rows,
    bin_names,
    repeat_cells,
    repeat_note,
    sample_note,
    truncated_share,
)
from evaluation.report.page import chart, document
from evaluation.report.tables import table, text

DRAWN = 14  # datasets with a curve of their own, the most probable ones


def inspection_page(found: Inspection, made: str) -> str:
    """The whole file; `made` says when and by which version of this code."""
    sections = [("datasets", "Datasets", dataset_section(found)),
                ("lengths", "Lengths", length_section(found)),
                ("batches", "Batches", f"<pre>{html.escape(chr(10).join(batch_rows(found)))}</pre>"),
                ("duplicates", "Duplicates", repeat_section(found))]
    if any(view.samples for view in found.datasets):
        sections.append(("examples", "Examples", sample_section(found)))
    return document(f"Inspection: {found.data_dir}", made, sections, [])


def dataset_section(found: Inspection) -> str:
    header = ["dataset", "kind", "examples", "weight", "probability", "epochs", "tokens per text", "truncated"]
    rows = [[html.escape(view.name), view.kind, f"{view.examples:,}", f"{view.weight:,}", f"{view.probability:.3%}",
             f"{view.epochs:.3g}", f"{view.mean_tokens:.1f}", f"{truncated_share(view):.2%}"]
            for view in found.datasets]
    run = f"{found.num_steps:,} steps of {found.global_batch_size:,} examples"
    longest = f"{found.max_length - 2} tokens{sample_note(found)}"
    return f"<p>Epochs of a run of {run}. Truncated: texts of more than {longest}.</p>{table(header, rows)}"


def length_section(found: Inspection) -> str:
    """Share of the texts in each bin, a curve per dataset."""
    figure = charts.new_figure([])
    drawn = sorted(found.datasets, key=lambda view: -view.probability)[:DRAWN]
    for index, view in enumerate(drawn):
        total = sum(view.histogram)
        figure.add_trace(graph.Scatter(
            x=bin_names(found.edges), y=[100 * count / total for count in view.histogram], name=charts.plain(view.name),
            mode="lines+markers", line={"color": charts.PALETTE[index % len(charts.PALETTE)],
                                        "dash": charts.DASHES[index // len(charts.PALETTE) % len(charts.DASHES)]}))
    note = "" if len(drawn) == len(found.datasets) else f" The {DRAWN} most probable datasets."
    return (f"<p>All texts, by their tokens without special ones.{note}</p>"
            + chart(charts.finished(figure, "tokens of a text", "share of texts (%)"), "lengths"))


def repeat_section(found: Inspection) -> str:
    header = ["dataset", "texts again", "texts also elsewhere", "examples again", "examples also elsewhere"]
    rows = [[html.escape(view.name), *repeat_cells(found.texts, view.name), *repeat_cells(found.examples, view.name)]
            for view in found.datasets]
    shared = [[html.escape(first), html.escape(second), f"{count:,}"] for first, second, count in found.texts.shared]
    return (f"<p>{html.escape(repeat_note(found))}.</p>{table(header, rows)}"
            + (table(["datasets that share texts", "", "texts"], shared) if shared else ""))


def sample_section(found: Inspection) -> str:
    rows = [[html.escape(view.name), f"{number}", role, text(shown)] for view in found.datasets
            for number, texts in enumerate(view.samples, start=1) for role, shown in texts]
    return table(["dataset", "example", "role", "text"], rows, "words")
