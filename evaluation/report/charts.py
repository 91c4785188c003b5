"""The charts of a report, drawn by plotly (the `report` extra); a run has one colour in all of them.

Every text is escaped, because plotly interprets some HTML in names and hover texts. The page says what is thinned out.
"""

import html
import textwrap
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as graph
from plotly.subplots import make_subplots

from evaluation.measures.correlation import spearman
from evaluation.report.curves import curves_of
from evaluation.report.runs import Run
from evaluation.report.scores import OUTLIERS, is_lower_better, is_sts, outliers

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")  # Okabe and Ito's, adapted
DASHES = ("solid", "dash", "dot", "dashdot")  # of runs beyond the palette
POINTS = 600  # most points drawn of a task's pairs, and of a curve
PANELS = 2  # side by side
GRID = "rgba(128, 128, 128, 0.25)"
ACCURACY = "translation_accuracy"


class Style(NamedTuple):
    color: str
    dash: str


Styles = dict[str, Style]  # run -> how it looks


def styles_of(runs: list[Run]) -> Styles:
    return {run.name: Style(PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)])
            for index, run in enumerate(runs)}


def loss_curves(runs: list[Run], styles: Styles) -> graph.Figure | None:
    """Training loss against the step."""
    figure, titles = new_figure([]), {}
    for run in runs:
        curves = curves_of(run.training)
        if curves.loss:
            titles[f"{curves.loss_title} ({curves.loss_unit})"] = None
            add_curve(figure, thinned(curves.loss), run.name, styles[run.name], 0, markers=False)
    return finished(figure, "step", ", ".join(titles)) if figure.data else None


def score_curves(runs: list[Run], styles: Styles) -> graph.Figure | None:
    """One panel per evaluation score of trainings, except for scores of single languages (name:de)."""
    scores = {run.name: curves_of(run.training).scores for run in runs}
    names = [name for name in dict.fromkeys(name for of_run in scores.values() for name in of_run) if ":" not in name]
    if not names:
        return None
    figure = new_figure([plain(name) + (" (lower is better)" if is_lower_better(name) else "") for name in names])
    for panel, name in enumerate(names):
        for run in runs:
            if name in scores[run.name]:
                add_curve(figure, thinned(scores[run.name][name]), run.name, styles[run.name], panel, markers=True)
    return finished(figure, "step", "score x 100")


def add_curve(
    figure: graph.Figure, points: list[tuple], name: str, style: Style, panel: int, *, markers: bool
) -> None:
    figure.add_trace(graph.Scatter(
        x=[point[0] for point in points], y=[point[1] for point in points], name=plain(name), legendgroup=name,
        mode="lines+markers" if markers else "lines", line={"color": style.color, "dash": style.dash, "width": 1.6},
        showlegend=not any(trace.legendgroup == name for trace in figure.data),
    ), **place(panel))


def thinned(points: list[tuple]) -> list[tuple]:
    """Evenly spaced points and the last one, at most POINTS + 1."""
    step = -(-len(points) // POINTS)
    return points[::step] + ([points[-1]] if (len(points) - 1) % step else [])


def scatter(task: tuple[str, str, str], runs: list[Run], styles: Styles) -> graph.Figure:
    """Cosine against gold for an entry of Run.items, one panel per run; outliers are crosses. Hovering shows texts."""
    rhos = [100 * spearman(np.array(run.items[task]["cosine"]), np.array(run.items[task]["score"])) for run in runs]
    figure = new_figure([f"{plain(run.name)}, ρ = {rho:.2f}" for run, rho in zip(runs, rhos)], shared=True)
    for panel, run in enumerate(runs):
        columns = run.items[task]
        worst = {outlier.row for outlier in outliers(columns, OUTLIERS)}
        rows = sorted({*drawn_rows(len(columns["cosine"])).tolist()} | worst)
        figure.add_trace(graph.Scatter(
            x=[columns["score"][row] for row in rows], y=[columns["cosine"][row] for row in rows], mode="markers",
            name=plain(run.name), showlegend=False, text=[pair_text(columns, row) for row in rows],
            hovertemplate="gold %{x:.2f}, cosine %{y:.3f}<br>%{text}<extra></extra>",
            marker={"color": styles[run.name].color, "opacity": [0.9 if row in worst else 0.45 for row in rows],
                    "symbol": ["x" if row in worst else "circle" for row in rows],
                    "size": [8 if row in worst else 5 for row in rows], "line": {"width": 0}},
        ), **place(panel))
    return finished(figure, "gold similarity (people)", "cosine (model)")


def drawn_rows(num_pairs: int) -> np.ndarray:
    """A fixed sample of at most POINTS rows, the same in each run."""
    return np.random.default_rng(0).permutation(num_pairs)[:POINTS]


def pair_text(columns: dict[str, list], row: int) -> str:
    return "<br>".join(wrapped(columns[name][row]) for name in ("sentence1", "sentence2"))


def wrapped(text: str) -> str:
    """Escaped lines of 70 characters, at most four."""
    return "<br>".join(plain(line) for line in textwrap.wrap(text, 70, max_lines=4, placeholder=" ..."))


def token_lengths(runs: list[Run], styles: Styles) -> graph.Figure:
    """Shares of the texts by number of tokens, all runs in one panel."""
    figure, longest = new_figure([]), max(max(run.texts["token_counts"]) for run in runs)
    edges = np.arange(0, longest + 2 + longest // 60, 1 + longest // 60)  # about 60 bins of whole tokens
    for run in runs:
        add_histogram(figure, run.texts["token_counts"], edges, run.name, styles[run.name], 0, in_legend=True)
    return finished(figure, "tokens of a text, special ones included", "share of texts (%)")


def similarities(runs: list[Run], styles: Styles) -> graph.Figure:
    """Cosines of similar pairs, of dissimilar pairs (by gold score) and of random texts, one panel per run."""
    figure = new_figure([plain(run.name) for run in runs], shared=True)
    for panel, run in enumerate(runs):
        low, high = gold_cosines(run)
        everything = [*run.texts["random_cosines"], *low, *high]
        edges = np.linspace(min(everything), max(max(everything), min(everything) + 1e-3), 41)
        color = styles[run.name].color
        for name, values, style in (("random pairs", run.texts["random_cosines"], Style("#8a8a8a", "solid")),
                                    ("gold: lowest third", low, Style(color, "dot")),
                                    ("gold: highest third", high, Style(color, "solid"))):
            if len(values):
                add_histogram(figure, values, edges, name, style, panel, in_legend=panel == 0)
    return finished(figure, "cosine", "share of pairs (%)")


def gold_cosines(run: Run) -> tuple[list[float], list[float]]:
    """Cosines of the STS pairs in the lowest and the highest third of their task's range of gold scores."""
    low, high = [], []
    for (_, _, part), columns in run.items.items():
        if not part and is_sts(columns):
            gold = np.array(columns["score"])
            relative = (gold - gold.min()) / max(gold.max() - gold.min(), 1e-9)
            low += np.array(columns["cosine"])[relative <= 1 / 3].tolist()
            high += np.array(columns["cosine"])[relative >= 2 / 3].tolist()
    return low, high


def add_histogram(
    figure: graph.Figure, values: list[float], edges: np.ndarray, name: str, style: Style, panel: int,
    *, in_legend: bool,
) -> None:
    """Draws a stair line, so that histograms do not hide each other."""
    counts, _ = np.histogram(values, edges)
    shares = 100 * counts / len(values)
    figure.add_trace(graph.Scatter(
        x=np.append(edges[0], edges), y=np.concatenate([[0], shares, [0]]), mode="lines", name=plain(name),
        showlegend=in_legend, line={"color": style.color, "dash": style.dash, "shape": "hv", "width": 1.6},
        fill="tozeroy", fillcolor="rgba(128, 128, 128, 0.08)", hovertemplate="%{x:.3g}: %{y:.1f} %",
    ), **place(panel))


def languages(task: str, runs: list[Run], styles: Styles) -> graph.Figure:
    """Bars of translation accuracy, the first run's best language on top. Hovering shows all metrics."""
    figure, scores = new_figure([]), [accuracies(run, task) for run in runs]
    sorted_scores = [sorted(of_run, key=lambda language, of_run=of_run: -of_run[language]) for of_run in scores]
    order = list(dict.fromkeys(language for of_run in sorted_scores for language in of_run))
    for run, of_run in zip(runs, scores):
        there = [language for language in order if language in of_run]
        figure.add_trace(graph.Bar(
            y=[plain(language) for language in there], x=[of_run[language] for language in there],
            orientation="h", name=plain(run.name), marker={"color": styles[run.name].color},
            text=[language_text(run, task, language) for language in there], textposition="none",
            hovertemplate="%{y}<br>%{text}",
        ))
    figure = finished(figure, "translation accuracy (%)", "language")
    figure.update_yaxes(autorange="reversed", type="category", dtick=1)
    figure.update_xaxes(range=[0, 100])
    return figure.update_layout(height=130 + len(order) * (10 + 9 * len(runs)), bargap=0.25)


def accuracies(run: Run, task: str) -> dict[str, float]:
    """{language: translation accuracy} of the task's parts."""
    return {key.part: line.value for key, line in run.lines.items()
            if key.base == task and key.part and key.metric == ACCURACY}


def language_text(run: Run, task: str, part: str) -> str:
    return "<br>".join(f"{plain(line.metric)} {line.value:.2f}" for line in run.lines.values()
                       if (line.key.base, line.key.part) == (task, part))


def plain(text: str) -> str:
    """Escaped for plotly, which interprets some HTML but not &quot;."""
    return html.escape(text, quote=False)


def place(panel: int) -> dict[str, int]:
    return {"row": panel // PANELS + 1, "col": panel % PANELS + 1}


def new_figure(titles: list[str], *, shared: bool = False) -> graph.Figure:
    """One panel per title, PANELS in a row; without titles a single one. `shared`: all panels have the same axes."""
    if len(titles) < 2:
        return make_subplots(rows=1, cols=1, subplot_titles=titles)
    rows, share = -(-len(titles) // PANELS), "all" if shared else False
    return make_subplots(rows=rows, cols=PANELS, subplot_titles=titles, horizontal_spacing=0.09,
                         vertical_spacing=0.3 / rows, shared_xaxes=share, shared_yaxes=share)


def finished(figure: graph.Figure, x_title: str, y_title: str) -> graph.Figure:
    """Adds axis titles and a grid, and no background, so that the dark or light one of the page shows (page.py)."""
    figure.update_xaxes(title_text=x_title, gridcolor=GRID, zerolinecolor=GRID, showticklabels=True, automargin=True)
    figure.update_yaxes(title_text=y_title, gridcolor=GRID, zerolinecolor=GRID, showticklabels=True, automargin=True)
    in_legend = sum(trace.showlegend is not False for trace in figure.data)
    rows = len({axis.domain for axis in figure.select_yaxes()})
    return figure.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=80 + 320 * rows,
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 60, "r": 16, "t": 80 if in_legend > 1 else 50, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"}, barmode="group",
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a8a8a", "activecolor": PALETTE[0]},
    )
