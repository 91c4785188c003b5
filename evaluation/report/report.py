"""Compare evaluations and trainings on one HTML page that needs no network.

    python main.py report RUN1 RUN2 ... --output=report.html

A RUN is a results.json that `main.py evaluate --output` wrote, a folder with one or more results*.json of one model, or
the WORKDIR of a training (metrics.jsonl and evaluations/). A WORKDIR with results*.json is both. Runs are called by
their folder, and compared with the first one.

The page holds the scores beside published ones, with 95 % bootstrap intervals and paired differences; loss and score
curves; cosines against gold scores with the worst pairs; lengths and similarities; translation accuracy by language;
nearest neighbours; seconds. A mean over the seven STS tasks says which of them it lacks, and what cannot be compared
(other sentences, other numbers of items) is noted on top of the page. Intervals, scatter plots and histograms need
results.items.json.gz, which `main.py evaluate` writes beside results.json. Needs plotly: pip install -e ".[report]".
"""

import dataclasses
import datetime

from absl import flags

from data.files import new_file
from evaluation.report.runs import read_runs
from evaluation.report.scores import compare, compare_trainings
from evaluation.results import check_output, code_version
from flags import flag

FEWEST_RESAMPLES = 100  # the 2.5th percentile of fewer means nothing


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    output: str = flag("report.html", "the page to write")
    names: tuple[str, ...] = flag((), "what the runs are called on the page, comma-separated; empty: their folders")
    resamples: int = flag(1000, "bootstrap resamples for each interval", minimum=1)


def report(config: ReportConfig, arguments: list[str]) -> None:
    """Reads the runs that the arguments name and writes the page.

    Raises: flags.Error if no run is named or a flag is unknown, ValueError naming the file that is not as it should be.
    """
    unknown = [argument for argument in arguments if argument.startswith("-")]
    if unknown:
        raise flags.Error(f"not a flag: {unknown[0]!r}")
    if not arguments:
        raise flags.Error("name at least one RUN: a results.json, a folder with results*.json or a training's WORKDIR")
    if config.resamples < FEWEST_RESAMPLES:
        raise ValueError(f"--resamples={config.resamples} is too few for a 95 % interval: at least {FEWEST_RESAMPLES}")
    runs = read_runs(arguments, config.names)
    check_output(config.output)
    try:
        from evaluation.report.page import page
    except ModuleNotFoundError as error:
        if not error.name.startswith("plotly"):
            raise
        raise ValueError('main.py report draws with plotly: pip install -e ".[report]"') from error

    comparison = compare([run for run in runs if run.lines], config.resamples)
    progress, training_notices = compare_trainings([run for run in runs if run.training], config.resamples)
    notices = [f"{run.name}: {notice}" for run in runs for notice in run.notices]
    made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, allpairs {code_version()}"
    text = page(runs, comparison, progress, notices + comparison.notices + training_notices, made)
    with new_file(config.output) as file:
        file.write(text.encode())
    print(f"{config.output}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(text) / 1e6:.1f} MB")
