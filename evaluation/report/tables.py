"""The tables of a report as HTML. All text that comes from files is escaped here."""

import html
import statistics
from collections.abc import Iterable

from evaluation.measures.bootstrap import Interval
from evaluation.report.published import AVERAGES, COLUMNS, TASKS, Published
from evaluation.report.runs import Key, Run
from evaluation.report.scores import (
    MEAN_OF_SEVEN,
    OUTLIERS,
    SPEARMAN,
    Cell,
    Comparison,
    Progress,
    Row,
    decimals,
    outliers,
)
from evaluation.tasks.sts import SEVEN

CUT = 300  # characters shown of a text


def table(header: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Cells are HTML; the first of each row is its header. Wide tables scroll by themselves."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f'<th scope="row">{cell}</th>' if index == 0 else f"<td>{cell}</td>"
                         for index, cell in enumerate(row)) + "</tr>" for row in rows)
    return (f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody></table></div>")


def text(value: str) -> str:
    """An escaped text, cut if it is very long."""
    return html.escape(value if len(value) <= CUT else value[:CUT] + " ...")


def run_name(name: str, color: str) -> str:
    return f'<span class="run"><span class="dot" style="background:{color}"></span>{html.escape(name)}</span>'


def runs_table(runs: list[Run], names: list[str]) -> str:
    rows = []
    for run, name in zip(runs, names):
        kinds = [f"{len(run.lines)} scores of {len(run.seconds())} tasks"] if run.lines else []
        kinds += [f"training, {run.training[-1]['step']:,} steps"] if run.training else []
        models = dict.fromkeys(line.model for line in run.lines.values())
        codes = dict.fromkeys(line.code for line in run.lines.values())
        rows.append([name, html.escape(run.place), "; ".join(kinds), f"<code>{html.escape(', '.join(models))}</code>",
                     f"<code>{html.escape(', '.join(codes))}</code>", run.written,
                     f"{sum(run.seconds().values()):,.1f}" if run.lines else ""])
    return table(["run", "path", "what", "model hash", "code version", "written (UTC)", "seconds"], rows, "words")


def scores_table(comparison: Comparison, names: list[str]) -> str:
    """Headlines: rows are tasks, columns our runs and the published figures."""
    rows = comparison.headlines + ([comparison.mean_of_seven] if comparison.mean_of_seven else [])
    figures = [[published_figure(model, row) for model in TASKS] for row in comparison.headlines]
    shown = [model for model, column in zip(TASKS, zip(*figures)) if any(column)]
    header = ["task", *names, *(f"{html.escape(model.model)}<br><small>published</small>" for model in shown)]
    body = [[row_title(row), *(score(cell, row, index) for index, cell in enumerate(row.cells)),
             *(published_figure(model, row) for model in shown)] for row in rows]
    sources = "; ".join(html.escape(f"{model.model}: {model.source}") for model in shown)
    return table(header, body, "scores") + (f"<p><small>Published figures: {sources}.</small></p>" if shown else "")


def published_figure(model: Published, row: Row) -> str:
    """The model's score on the row's task, or its mean of the seven; empty if that was not published."""
    if row.key.split != "test" or row.key.metric != SPEARMAN:
        return ""
    scores = model.scores
    if row.key.task == MEAN_OF_SEVEN and scores.keys() >= set(SEVEN):
        return f"{sum(scores[task] for task in SEVEN) / len(SEVEN):.2f}"
    return f"{scores[row.key.task]:.2f}" if row.key.task in scores else ""


def row_title(row: Row) -> str:
    return f"{html.escape(row.key.task)}<br><small>{html.escape(row.key.split)}, {html.escape(row.key.metric)}</small>"


def score(cell: Cell | None, row: Row, index: int) -> str:
    """Value, n and interval; below them the difference to the first run, marked if its interval excludes 0."""
    if cell is None:
        return ""
    digits = decimals(row.key.metric)
    value = f"{cell.value:.{digits}f}"
    lines = [f"<b>{value}</b>" if index in row.best() else value]
    if cell.note:
        lines.append(f'<small class="note">{html.escape(cell.note)}</small>')
    if cell.interval:
        lines.append(f"<small>{interval(cell.interval, digits)}</small>")
    if cell.difference:
        mark = ' <span class="clear" title="the interval excludes 0">●</span>' if cell.difference.is_clear else ""
        lines.append(f'<small class="difference">Δ {cell.difference.value:+.{digits}f} '
                     f"{interval(cell.difference.interval, digits, '+')}{mark}</small>")
    if cell.n:
        lines.append(f"<small>n = {cell.n:,}</small>")
    return "<br>".join(lines)


def interval(bounds: Interval, digits: int, sign: str = "") -> str:
    return f"[{bounds.low:{sign}.{digits}f}, {bounds.high:{sign}.{digits}f}]"


def averages_table() -> str:
    rows = [[html.escape(model.model),
             *(f"{model.values[name]:.2f}" if name in model.values else "" for name in COLUMNS),
             html.escape(model.source)] for model in AVERAGES]
    return table(["published model", *COLUMNS, "source"], rows)


def other_tables(comparison: Comparison, names: list[str]) -> str:
    """One expandable table per task: its parts and its further metrics."""
    blocks = []
    for task, rows in comparison.others.items():
        body = [[row_title(row), *(score(cell, row, index) for index, cell in enumerate(row.cells))] for row in rows]
        blocks.append(f"<details><summary>{html.escape(task)}: {len(rows)} further scores</summary>\n"
                      f"{table(['score', *names], body, 'scores')}</details>")
    return "\n".join(blocks)


def training_table(progress: dict[str, list[Progress | None]], names: list[str]) -> str:
    """The last score of each run, with its first and its best one."""
    body = []
    for name, of_runs in progress.items():
        row = Row(Key("training", "", name), [one and one.cell for one in of_runs])
        body.append([html.escape(name), *("" if one is None else f"{score(one.cell, row, index)}<br>{steps(one, name)}"
                                          for index, one in enumerate(of_runs))])
    return table(["score x 100", *names], body, "scores")


def steps(progress: Progress, name: str) -> str:
    moments = (("first", progress.first), ("best", progress.best), ("last", progress.last))
    return "<br>".join(f"<small>{when} {value:.{decimals(name)}f} at step {step:,}</small>"
                       for when, (step, value) in moments)


def outliers_table(task: tuple[str, str, str], runs: list[Run], names: list[str]) -> str:
    """For each run, the pairs of an entry of Run.items whose ranks by people and by the model differ most."""
    rows = []
    for run, name in zip(runs, names):
        columns = run.items[task]
        for outlier in outliers(columns, OUTLIERS):
            row = outlier.row
            rows.append([name, f"{columns['score'][row]:.2f}", f"{columns['cosine'][row]:.3f}",
                         f"{outlier.human_rank:,}", f"{outlier.model_rank:,}",
                         text(columns["sentence1"][row]), text(columns["sentence2"][row])])
    header = ["run", "gold", "cosine", "rank by people", "rank by the model", "sentence 1", "sentence 2"]
    return (f"<details><summary>The {OUTLIERS} pairs of each run whose ranks differ most</summary>\n"
            f"{table(header, rows, 'words')}</details>")


def neighbours_table(runs: list[Run], names: list[str]) -> str:
    """One row per text, one column per run: the nearest texts in the sample. Texts that most runs have come first."""
    nearest = [{example["text"]: example["nearest"] for example in run.texts["neighbours"]} for run in runs]
    rows, queries = [], dict.fromkeys(query for of_run in nearest for query in of_run)
    for query in sorted(queries, key=lambda query: -sum(query in of_run for of_run in nearest)):
        lists = ["".join(f"<li>{cosine:.3f} {text(near)}</li>" for near, cosine in of_run.get(query, ()))
                 for of_run in nearest]
        rows.append([text(query), *(f"<ol>{entries}</ol>" if entries else "" for entries in lists)])
    return table(["text", *names], rows, "words texts")


def speed_table(runs: list[Run], names: list[str]) -> str:
    """Seconds of each task and of all tasks in each run; the median rate of trainings."""
    seconds = [run.seconds() for run in runs]
    rows = [[html.escape(task), *(f"{of_run[task]:,.2f}" if task in of_run else "" for of_run in seconds)]
            for task in dict.fromkeys(task for of_run in seconds for task in of_run)]
    rows.append(["all tasks", *(f"<b>{sum(of_run.values()):,.2f}</b>" if of_run else "" for of_run in seconds)])
    rates = [[line["pairs_per_second"] for line in run.training if "pairs_per_second" in line] for run in runs]
    if any(rates):
        medians = (f"{statistics.median(of_run):,.1f}" if of_run else "" for of_run in rates)
        rows.append(["training: median pairs/s", *medians])
    return table(["seconds", *names], rows)
