"""The page of a report: sections of tables and charts in one HTML file that loads nothing from the network."""

import html
from collections.abc import Iterator

import plotly.graph_objects as graph
from plotly.offline import get_plotlyjs

from evaluation.report import charts, tables
from evaluation.report.runs import Run
from evaluation.report.scores import OUTLIERS, Comparison, Progress, is_sts

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --back: #fdfdfc; --line: #d9d9d6; --soft: #5e5e62; --stripe: #f4f4f1;
  --accent: #0b63a5; --alarm: #b34700; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e6; --back: #161618; --line: #3a3a3e; --soft: #a4a4a8;
  --stripe: #1f1f22; --accent: #6cb4f0; --alarm: #ff9d5c; } }
body { margin: 0 auto; max-width: 82rem; padding: 1rem 1.25rem 4rem; color: var(--text); background: var(--back);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0; }
p { max-width: 52rem; } p, small, summary { color: var(--soft); } a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; }
th:first-child, .words th, .words td { text-align: left; }
thead th { max-width: 11rem; } .words td { min-width: 5rem; max-width: 26rem; overflow-wrap: break-word; }
.texts th, .texts td { min-width: 16rem; max-width: 24rem; font-weight: normal; }
tbody tr:nth-child(even) { background: var(--stripe); }
.scores td small, tbody th small, .run { white-space: nowrap; } small { font-weight: normal; }
.scores td .note { white-space: normal; color: var(--alarm); display: inline-block; min-width: 8rem; }
.clear { color: var(--accent); } .notices { border-left: 4px solid var(--alarm); padding: .25rem 1rem; margin: 1rem 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
ol { margin: 0; padding-left: 1.2rem; } summary { cursor: pointer; padding: .25rem 0; }
.chart { overflow-x: auto; } .chart > div { min-width: 34rem; }
.js-plotly-plot .cartesianlayer text, .js-plotly-plot .infolayer text { fill: var(--text) !important; }
"""
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}
NO_NETWORK = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(runs: list[Run], comparison: Comparison, progress: dict[str, list[Progress | None]], notices: list[str],
         made: str) -> str:
    """The HTML of the whole page; `made` says when and by which version of this code it was written."""
    title = "Report: " + ", ".join(run.name for run in runs)
    return document(title, made, list(all_sections(runs, comparison, progress)), notices)


def document(title: str, made: str, sections: list[tuple[str, str, str]], notices: list[str]) -> str:
    """A whole HTML file of sections (id, heading, HTML), with a list of notices on top."""
    title = html.escape(title)
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    bodies = "\n".join(f'<section id="{name}"><h2>{heading}</h2>\n{body}\n</section>'
                       for name, heading, body in sections)
    listed = "".join(f"<li>{html.escape(notice)}</li>" for notice in notices)
    warning = f'<div class="notices"><b>Note</b><ul>{listed}</ul></div>' if notices else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body><h1>{title}</h1><p>{html.escape(made)}</p><nav>{links}</nav>
{warning}
{bodies}
</body></html>
"""


def all_sections(
    runs: list[Run], comparison: Comparison, progress: dict[str, list[Progress | None]]
) -> Iterator[tuple[str, str, str]]:
    """(id, heading, HTML) of each section for which the runs have data."""
    styles = charts.styles_of(runs)
    names = {name: tables.run_name(name, style.color) for name, style in styles.items()}
    scored, trained = [run for run in runs if run.lines], [run for run in runs if run.training]
    described = [run for run in runs if run.texts["token_counts"]]

    def of(some: list[Run]) -> list[str]:
        return [names[run.name] for run in some]

    yield "runs", "Runs", tables.runs_table(runs, of(runs))
    if scored:
        yield "scores", "Scores", score_section(comparison, scored, of(scored))
    if trained:
        yield "training", "Training", training_section(progress, trained, of(trained), styles)
    tasks = dict.fromkeys(task for run in scored for task, columns in run.items.items()
                          if not task[2] and is_sts(columns))
    if tasks:
        yield "scatter", "Similarity against gold", scatter_section(list(tasks), scored, names, styles)
    if described:
        yield "histograms", "Lengths and similarities", histogram_section(described, styles)
    tasks = dict.fromkeys(key.base for run in scored for key in run.lines if charts.accuracies(run, key.base))
    if tasks:
        yield "languages", "Translation accuracy by language", language_section(list(tasks), scored, styles)
    if any(run.texts["neighbours"] for run in described):
        yield "neighbours", "Nearest neighbours", (
            "<p>Some texts, and the nearest by cosine among a sample of the evaluated texts.</p>"
            + tables.neighbours_table(described, of(described)))
    yield "speed", "Speed", ("<p>Wall-clock seconds of embedding and scoring, on the machine of each run.</p>"
                             + tables.speed_table(runs, of(runs)))


def score_section(comparison: Comparison, runs: list[Run], names: list[str]) -> str:
    text = ("All scores are x 100. Brackets show the 95 % interval of a bootstrap over the items (pairs or queries). "
            "The best run is bold.")
    if len(runs) > 1:
        text += (f" Δ is the difference to {html.escape(runs[0].name)}, by a paired bootstrap over the same items; ● "
                 "marks differences whose interval excludes 0. Items without stored texts are assumed to be the same "
                 "if their numbers are equal.")
    return (f"<p>{text}</p>{tables.scores_table(comparison, names)}"
            f"{tables.other_tables(comparison, names)}"
            f"<details><summary>Published averages</summary>{tables.averages_table()}</details>")


def training_section(
    progress: dict[str, list[Progress | None]], runs: list[Run], names: list[str], styles: charts.Styles
) -> str:
    curves = [("loss", charts.loss_curves(runs, styles)), ("curves", charts.score_curves(runs, styles))]
    drawn = "".join(chart(figure, name) for name, figure in curves if figure)
    text = (f"From metrics.jsonl; a curve has at most {charts.POINTS + 1} points. The table shows the scores at the "
            "last step, with 95 % intervals if the run kept the scores of each pair. Scores of single languages are "
            "only in the table.")
    if len(runs) > 1:
        text += f" Δ is the difference to {html.escape(runs[0].name)} on the same pairs."
    return f"<p>{text}</p>{drawn}{tables.training_table(progress, names)}"


def scatter_section(
    tasks: list[tuple[str, str, str]], runs: list[Run], names: dict[str, str], styles: charts.Styles
) -> str:
    text = (f"Each point is a pair of sentences: a random sample of at most {charts.POINTS} per task. Crosses are the "
            f"{OUTLIERS} pairs whose ranks by people and by the model differ most. Hover over a point to read its "
            "sentences. ρ, x 100, is over all pairs.")
    parts = [f"<p>{text}</p>"]
    for number, task in enumerate(tasks):
        there = [run for run in runs if is_sts(run.items.get(task, {}))]
        parts.append(f"<h3>{html.escape(f'{task[0]} ({task[1]})')}</h3>"
                     + chart(charts.scatter(task, there, styles), f"scatter-{number}")
                     + tables.outliers_table(task, there, [names[run.name] for run in there]))
    return "".join(parts)


def histogram_section(runs: list[Run], styles: charts.Styles) -> str:
    with_cosines = [run for run in runs if run.texts["random_cosines"]]
    text = ("The lowest and highest third refer to the range of gold scores of each STS task. The less the curves "
            "overlap, the better a model separates similar from dissimilar pairs.")
    return (chart(charts.token_lengths(runs, styles), "lengths") + f"<p>{text}</p>"
            + (chart(charts.similarities(with_cosines, styles), "similarities") if with_cosines else ""))


def language_section(tasks: list[str], runs: list[Run], styles: charts.Styles) -> str:
    parts = []
    for number, task in enumerate(tasks):
        there = [run for run in runs if charts.accuracies(run, task)]
        parts.append(f"<h3>{html.escape(task)}</h3>"
                     + chart(charts.languages(task, there, styles), f"languages-{number}"))
    return "".join(parts)


def chart(figure: graph.Figure, name: str) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=f"chart-{name}")
    return f'<div class="chart">{drawn}</div>'
