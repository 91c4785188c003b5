"""Compare evaluations and trainings on one HTML page that needs no network.

    python main.py report RUN1 RUN2 ... --output=report.html

A RUN is a results.json that `main.py evaluate --output` wrote, a folder with one or more results*.json of one model, or
the WORKDIR of a training (metrics.jsonl and evaluations/). A WORKDIR with results*.json is both. Runs are named after
their folders and compared with the first one.

The page shows the scores beside published ones, with 95 % bootstrap intervals and paired differences; loss and score
curves; cosines against gold scores with the worst pairs; lengths and similarities; translation accuracy by language;
nearest neighbours; seconds. A mean over the seven STS tasks says which of them are missing. Scores that cannot be
compared (on other sentences, or other numbers of items) are listed at the top of the page. Intervals, scatter plots and
histograms need results.items.json.gz, which `main.py evaluate` writes beside results.json. This command needs plotly:
pip install -e ".[report]".
"""

import dataclasses
import datetime

from absl import flags

from data.files import new_file
from evaluation.report.runs import read_runs
from evaluation.report.scores import compare, compare_trainings
from evaluation.results import check_output, code_version
from flags import flag

FEWEST_RESAMPLES = 100  # with fewer, the 2.5th percentile is meaningless


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    output: str = flag("report.html", "HTML file to write")
    names: tuple[str, ...] = flag((), "names of the runs on the page, comma-separated, one per RUN; empty: folders")
    resamples: int = flag(1000, "bootstrap resamples for each interval", minimum=FEWEST_RESAMPLES)


def report(config: ReportConfig, arguments: list[str]) -> None:
    """Reads the runs that the arguments name and writes the page.

    Raises flags.Error if no run is named or a flag is unknown, ValueError naming a file that is damaged.
    """
    unknown = [argument for argument in arguments if argument.startswith("-")]
    if unknown:
        raise flags.Error(f"not a flag: {unknown[0]!r}")
    if not arguments:
        raise flags.Error("name at least one RUN: a results.json, a folder with results*.json or a training's WORKDIR")
    runs = read_runs(arguments, config.names)
    check_output(config.output)
    try:
        from evaluation.report.page import page
    except ModuleNotFoundError as error:
        if not error.name.startswith("plotly"):
            raise
        raise ValueError('main.py report needs plotly: pip install -e ".[report]"') from error

    comparison = compare([run for run in runs if run.lines], config.resamples)
    progress, training_notices = compare_trainings([run for run in runs if run.training], config.resamples)
    notices = [f"{run.name}: {notice}" for run in runs for notice in run.notices]
    made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, allpairs {code_version()}"
    text = page(runs, comparison, progress, notices + comparison.notices + training_notices, made)
    with new_file(config.output) as file:
        file.write(text.encode())
    print(f"{config.output}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(text) / 1e6:.1f} MB")
