"""Show what a prepared folder holds, and what a training on it will ask for.

    python main.py inspect DATA_DIR [--output=inspection.html] [--num_steps=N --global_batch_size=B --max_length=L ...]

Prints the datasets with their weights as probabilities and the epochs of the planned run; the lengths of texts, as
histograms; how many texts are truncated at --max_length; texts and examples that come twice, within a dataset and in
several; some examples, decoded; and batches as the loader packs them: packing efficiency, and the tokens per step.
Lengths are in tokens without the two special ones, except in batches. A sample is called one.

With --output the same is drawn on an HTML page that needs no network. That needs plotly: pip install -e ".[report]".
"""

import dataclasses
import datetime
import itertools
import types

from absl import flags

from data.files import new_file
from data.inspection import BatchView, DatasetView, Inspection, Repeats, inspect_data
from data.loader import LoaderConfig
from data.settings import BatchSettings, DataSettings
from evaluation.results import check_output, code_version
from flags import flag

BAR = 40  # characters of the longest bar
SPARKS = "▁▂▃▄▅▆▇█"
CUT = 160  # characters shown of a text


@dataclasses.dataclass(frozen=True)
class WhatToShow:
    num_steps: int = flag(100_000, "steps of the planned run", minimum=1)
    seed: int = flag(0, "seed of the planned run, which decides its batches", minimum=0)
    examples: int = flag(2, "examples shown of each dataset; 0: none", minimum=0)
    read_examples: int = flag(100_000, "most examples read of each dataset for truncation and duplicates, spread "
                                       "evenly; 0: all of them", minimum=0)
    batches: int = flag(8, "batches that are packed, spread evenly over the run", minimum=1)
    output: str = flag("", "HTML page to write; empty: none")


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    show: WhatToShow = WhatToShow()
    data: DataSettings = dataclasses.replace(DataSettings(), data_dir="", verify="size")
    batch: BatchSettings = BatchSettings()


def inspect(config: InspectConfig, arguments: list[str]) -> None:
    """Prints the inspection and writes the page.

    Raises: flags.Error if no folder is named or a flag is unknown, ValueError for what the loader refuses.
    """
    unknown = [argument for argument in arguments if argument.startswith("-")]
    if unknown:
        raise flags.Error(f"not a flag: {unknown[0]!r}")
    named = [*arguments, *([config.data.data_dir] if config.data.data_dir else [])]
    if len(named) != 1:
        raise flags.Error(f"name one DATA_DIR, a folder that `main.py prepare` wrote, not {len(named)}")
    show = config.show
    if show.output:
        check_output(show.output)
        page = _import_page()
    data = dataclasses.replace(config.data, data_dir=named[0])
    found = inspect_data(LoaderConfig(data, config.batch, show.seed, show.num_steps),
                         show.read_examples, show.examples, show.batches)
    print(as_text(found))
    if show.output:
        made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, allpairs {code_version()}"
        with new_file(show.output) as file:
            file.write(page.inspection_page(found, made).encode())
        print(f"{show.output} has the same as a page")


def _import_page() -> types.ModuleType:
    try:
        from evaluation.report import inspect_page
    except ModuleNotFoundError as error:
        if not error.name.startswith("plotly"):
            raise
        raise ValueError('--output draws with plotly: pip install -e ".[report]"') from error
    return inspect_page


def as_text(found: Inspection) -> str:
    """The inspection for a terminal."""
    parts = [f"{found.data_dir}: {len(found.datasets)} datasets, "
             f"{sum(view.examples for view in found.datasets):,} examples", dataset_rows(found),
             "\n".join(length_rows(found)), "\n".join(batch_rows(found)), "\n".join(repeat_rows(found)),
             "\n".join(sample_rows(found))]
    return "\n\n".join(part for part in parts if part)


def dataset_rows(found: Inspection) -> str:
    width = max(len("dataset"), *(len(view.name) for view in found.datasets))
    rows = [f"{'dataset':{width}}  {'kind':8} {'examples':>13} {'weight':>8} {'probability':>11} {'epochs':>9} "
            f"{'tokens/text':>11} {'truncated':>9}  lengths"]
    for view in found.datasets:
        rows.append(f"{view.name:{width}}  {view.kind:8} {view.examples:13,} {view.weight:8,} "
                    f"{view.probability:11.3%} {view.epochs:9.3g} {view.mean_tokens:11.1f} "
                    f"{truncated_share(view):9.2%}  {spark(view.histogram)}")
    rows.append(f"epochs: of a run of {found.num_steps:,} steps of {found.global_batch_size:,} examples. truncated: "
                f"texts of more than {found.max_length - 2} tokens{sample_note(found)}")
    return "\n".join(rows)


def truncated_share(view: DatasetView) -> float:
    return view.truncated_texts / view.read_texts


def sample_note(found: Inspection) -> str:
    """"" or ", in a sample: ..."."""
    read, whole = (sum(getattr(view, name) for view in found.datasets) for name in ("read_examples", "examples"))
    return "" if read == whole else f", in a sample of {read:,} of {whole:,} examples"


def spark(counts: tuple[int, ...]) -> str:
    """A histogram in one line of characters."""
    most = max(*counts, 1)
    return "".join(" " if not count else SPARKS[(len(SPARKS) - 1) * count // most] for count in counts)


def length_rows(found: Inspection) -> list[str]:
    """The histogram of all texts, a row per bin."""
    counts = [sum(of_bin) for of_bin in zip(*(view.histogram for view in found.datasets))]
    return ["tokens of a text (all texts)", *(
        f"{name:>12} {count:15,} {count / sum(counts):7.2%} {'█' * round(BAR * count / max(counts))}"
        for name, count in zip(bin_names(found.edges), counts))]


def bin_names(edges: tuple[int, ...]) -> list[str]:
    return [f"{low:,} to {high - 1:,}" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]:,} or more"]


def batch_rows(found: Inspection) -> list[str]:
    batches = found.batches
    return [f"batches: {len(batches.steps)} of {found.num_steps:,} steps, packed by the loader",
            f"  packing efficiency        {batches.efficiency:.3f}",
            f"  tokens per step           {spread(batches.real_tokens)}",
            f"  with padding              {spread(batches.row_tokens)}: what the devices compute",
            f"  texts per step            {spread(batches.texts)}",
            f"  truncated at {found.max_length:<12,} {share(batches):.2%} of the texts",
            f"  tokens of the run, about  {mean(batches.real_tokens) * found.num_steps:.3g}"]


def spread(values: tuple[int, ...]) -> str:
    return f"{mean(values):,.0f} ({min(values):,} to {max(values):,})"


def mean(values: tuple[int, ...]) -> float:
    return sum(values) / len(values)


def share(batches: BatchView) -> float:
    return sum(batches.truncated_texts) / sum(batches.texts)


def repeat_rows(found: Inspection) -> list[str]:
    """Texts and examples that come twice, in a dataset and in several."""
    width = max(len("dataset"), *(len(view.name) for view in found.datasets))
    heads = ("texts again", "also elsewhere", "examples again", "also elsewhere")
    rows = [f"{'dataset':{width}}  " + " ".join(f"{head:>20}" for head in heads)]
    for view in found.datasets:
        cells = [cell for repeats in (found.texts, found.examples) for cell in repeat_cells(repeats, view.name)]
        rows.append(f"{view.name:{width}}  " + " ".join(f"{cell:>20}" for cell in cells))
    rows.append(repeat_note(found))
    rows += [f"{count:,} texts are both in {first} and in {second}" for first, second, count in found.texts.shared]
    return rows


def repeat_cells(repeats: Repeats, name: str) -> tuple[str, str]:
    """(those that came before in the dataset, distinct ones that another dataset has too), with their shares."""
    counted, distinct, elsewhere = (values[name] for values in (repeats.counted, repeats.distinct, repeats.elsewhere))
    return (f"{counted - distinct:,} ({(counted - distinct) / max(1, counted):.1%})",
            f"{elsewhere:,} ({elsewhere / max(1, distinct):.1%})")


def repeat_note(found: Inspection) -> str:
    note = ("again: texts, and examples with all their texts, that came before in the dataset. also elsewhere: "
            "different ones that another dataset has too")
    if sample_note(found):
        note += f"{sample_note(found)}: there are more in the whole"
    for repeats, what in ((found.texts, "texts"), (found.examples, "examples")):
        if repeats.one_in > 1:
            note += f". Counted for one in {repeats.one_in:,} {what}, by their hashes"
    return note


def sample_rows(found: Inspection) -> list[str]:
    rows = []
    for view in found.datasets:
        for number, texts in enumerate(view.samples, start=1):
            rows.append(f"{view.name}, example {number}")
            rows += [f"  {role:9} {shortened(text)}" for role, text in texts]
    return rows


def shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CUT else text[:CUT] + " ..."
