"""Remove duplicates, and texts of the evaluation sets, from training files.

    python main.py filter --source_dir=DIR --output=DIR [--evaluation_dir=DIR] [--data_config=FILE]

Reads every training file that prepare reads, and writes NAME.jsonl.gz for each, data_config.json with the new names and
line counts, and a report: filter_report.json and filter_report.md. Only texts and scores are written; other keys and
columns are not. The output is the --source_dir of prepare. Nothing in --source_dir is changed.

1. A text that is in an evaluation set is removed: its normal form is that of an evaluation text, or the two share a
   share of n-grams (data/mine/filter/words.py and evaluation_index.py have the definitions; evaluation_files.py says
   which files are read). A set or list loses the text, other examples go as a whole (examples.py).
2. Of examples that are the same, the first one stays, in the order of the data sets: those of --order, then the others
   in the order of --data_config, or else of their names. What step 1 removed wins over nothing. With
   --duplicates=texts no text is in two examples that are kept: an example goes if a text of it stands in one before it,
   even if that one goes too.

Ids are 64-bit hashes, sorted on disk, and the evaluation sets are an index on disk: memory does not grow with the
data. The output depends on neither --memory nor --workers. It appears whole or not at all; finished parts lie beside it
in a hidden folder, .NAME.filter, so that the same command goes on after Ctrl-C or a crash.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data.columns import as_json, parse_columns
from data.compression import compression_of
from data.data_config import Entry
from data.files import WRITTEN, check_replaceable, file_state, new_folder, read_json, write_errors_named, write_json
from data.first_block import check_first_block
from data.lock import only_one
from data.mine.filter import evaluation_index, passes, sorting
from data.mine.filter.evaluation_files import find_files
from data.mine.filter.examples import MOST_DATASETS
from data.mine.filter.passes import OUTPUT, Dataset, Rules
from data.mine.filter.report import markdown_of, tables_of
from data.mine.work import Pool, cores, processes, run_all
from data.mine.writing import PART_FILE, SUFFIX
from data.prepare import PrepareConfig
from data.sources import chosen_datasets
from flags import REQUIRED, Error, flag, nearest, values_of

VERSION = 1  # of the rules: another one means that finished parts are made again
REPORT, TABLES, DATA_CONFIG = "filter_report.json", "filter_report.md", "data_config.json"
DECIDING = ("order", "duplicates", "match", "keep_reversed", "ngram_words", "ngram_share", "skip_splits", "columns",
            "tsv", "tsv_header", "max_bad_share")  # flags that decide the output, beside the files


def _as_prepare(name: str) -> Any:
    """The flag of this name as prepare declares it."""
    found = next(field for field in dataclasses.fields(PrepareConfig) if field.name == name)
    return dataclasses.field(default=found.default, metadata=found.metadata)


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    source_dir: str = _as_prepare("source_dir")
    output: str = flag(REQUIRED, "folder that is written: training files, data_config.json and the report")
    evaluation_dir: tuple[str, ...] = flag(
        (), "folders or files of evaluation sets, whose texts are removed: .tsv, .csv, .txt, .jsonl and .parquet, each "
        "also compressed; empty: only duplicates are removed")
    skip_splits: tuple[str, ...] = flag(
        ("train",), "splits of the evaluation sets whose texts may be trained on; empty: none")
    ngram_share: float = flag(
        0.8, "a text is removed if it and an evaluation text share at least this share of the n-grams of the one that "
        "has fewer; 0: only texts that match as a whole are removed", minimum=0, maximum=1)
    ngram_words: int = flag(8, "words of an n-gram", minimum=1, maximum=100)
    duplicates: Literal["examples", "texts", "none"] = flag(
        "examples", "what is kept once. examples: of examples with the same texts one stays; texts: no text is in two "
        "examples; none: duplicates stay")
    match: Literal["normalized", "exact"] = flag(
        "normalized", "when two texts are duplicates. normalized: if only case, punctuation, white space or the form "
        "of their Unicode characters differ; exact: if nothing differs")
    keep_reversed: bool = flag(False, "a pair and the same pair in reverse order are two examples; false: duplicates")
    order: tuple[str, ...] = flag(
        (), "names of data sets that keep what others have too, the first one first; the others follow in the order of "
        "--data_config, or of their names")
    data_config: str = flag(
        "", 'file with a JSON list of {"name", "weight", "lines"}: the datasets to filter; empty: every training file')
    allow_missing: bool = flag(
        False, "filter the files of --data_config that are there, and list the others; false: a missing file is an "
        "error")
    columns: tuple[str, ...] = _as_prepare("columns")
    max_bad_share: float = _as_prepare("max_bad_share")
    tsv: Literal["texts", "parallel"] = _as_prepare("tsv")
    tsv_header: bool = _as_prepare("tsv_header")
    workers: int = flag(0, "processes; 0: one per core", minimum=0)
    memory: int = flag(1024, "MiB that each process may take for ids; what does not fit is sorted on disk", minimum=1)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is done with which files."""

    datasets: list[Dataset]  # by rank
    entries: list[Entry]  # in the order of data_config.json
    evaluation: list[tuple[Path, str]]  # files, their names in the report
    rules: Rules
    settings: dict[str, Any]
    digest: str  # of everything that decides the output


def filter_files(config: FilterConfig) -> None:
    """`main.py filter`. Raises ValueError or OSError with what to change."""
    plan, output = _plan_of(config), Path(config.output)
    if _is_finished(output, plan.digest):
        print(f"{output} is finished: the files and flags have not changed")
        return
    with _work_folder(output) as work:
        count = min(config.workers or cores(), max(len(plan.datasets), len(plan.evaluation)))
        with processes(count) as pool:
            written = _run_passes(config, plan, work, pool)
        report = _finish(config, plan, output, written)
    print(f"{tables_of(report)}\n\nwritten to {output}; {output / TABLES} has examples of what was removed")


def _plan_of(config: FilterConfig) -> _Plan:
    entries = _entries(config)
    evaluation, left_out = find_files(config.evaluation_dir)
    if left_out:
        print(left_out, file=sys.stderr)
    ordered = _in_order(config.order, entries)
    try:
        columns = parse_columns(config.columns, "--columns")
    except ValueError as error:
        raise Error(str(error)) from None
    if columns and config.tsv == "parallel":
        raise Error("--columns and --tsv=parallel both say how the columns of .tsv files are read: give one of them")
    datasets = [Dataset(rank, entry.name, Path(config.source_dir, entry.name), entry.columns or columns, config.tsv,
                        config.tsv_header, config.max_bad_share) for rank, entry in enumerate(ordered)]
    if len(datasets) >= MOST_DATASETS:
        raise ValueError(f"{len(datasets):,} data sets: at most {MOST_DATASETS - 1:,} can be filtered together")
    training = {os.path.realpath(dataset.path): dataset.name for dataset in datasets}
    for path, _ in evaluation:
        if os.path.realpath(path) in training:
            raise ValueError(f"--evaluation_dir has {path}, which is a training file too: move one of the two folders, "
                             "or name the training files in --data_config")
    for dataset in datasets:
        check_first_block(dataset.source(), dataset.max_bad_share)
    settings = {name: value for name, value in values_of(config).items() if name in DECIDING}
    rules = Rules(config.duplicates, config.match, config.keep_reversed, config.ngram_words, config.ngram_share)
    states = [(str(path), file_state(path)) for path, _ in evaluation]
    own = [(dataset.name, str(dataset.path), as_json(dataset.columns), file_state(dataset.path))
           for dataset in datasets]
    digest = _digest(VERSION, settings, states, own, [entry._asdict() for entry in entries])
    return _Plan(datasets, entries, evaluation, rules, settings, digest)


def _entries(config: FilterConfig) -> list[Entry]:
    """The data sets. Checks the folders."""
    source_dir, output = Path(config.source_dir), Path(config.output)
    if not source_dir.is_dir():
        raise ValueError(f"--source_dir={source_dir} is not a folder")
    if _is_prepared(source_dir):
        raise ValueError(f"--source_dir={source_dir} was written by `main.py prepare`: it has tokens and no texts. "
                         "Filter the training files and prepare what is left")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output={output} is a file: name a folder")
    for folder, name in ((source_dir, "source_dir"), *((Path(each), "evaluation_dir")
                                                       for each in config.evaluation_dir)):
        one, other = folder.resolve(), output.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ValueError(f"--output={output} and --{name}={folder} are one folder, or one holds the other: choose "
                             "another --output")
    check_replaceable(output)
    if (output / WRITTEN).exists() and not (output / REPORT).exists():
        raise ValueError(f"--output={output} was not written by filter: choose another folder")
    return chosen_datasets(source_dir, config.data_config, output, config.allow_missing)


def _is_prepared(folder: Path) -> bool:
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else None
    return isinstance(manifest, dict) and {"format", "tokenizer", "datasets"} <= manifest.keys()


def _in_order(order: tuple[str, ...], entries: list[Entry]) -> list[Entry]:
    names = [entry.name for entry in entries]
    for name in order:
        if name not in names:
            near = nearest(name, names)
            raise Error(f"--order names {name}, which is no data set" + (f": did you mean {near}?" if near else ""))
    if len(set(order)) < len(order):
        raise Error(f"--order={','.join(order)} names a data set twice")
    return sorted(entries, key=lambda entry: order.index(entry.name) if entry.name in order else len(order))


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:20]


def _is_finished(output: Path, digest: str) -> bool:
    if not (output / REPORT).exists():
        return False
    report = read_json(output / REPORT)
    files = {each["file"]: each["bytes"] for each in report["datasets"] if each["file"]}
    return report["digest"] == digest and all(
        (output / name).exists() and (output / name).stat().st_size == size for name, size in files.items())


@contextlib.contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """The folder of finished parts, beside the output; it is removed at the end, or if nothing was finished."""
    work = output.resolve().with_name(f".{output.resolve().name}.filter")
    with write_errors_named(output):
        work.mkdir(parents=True, exist_ok=True)
        with only_one(work / "lock", f"--output={output}", "folder"):
            try:
                yield work
            except BaseException:
                if os.listdir(work) == ["lock"]:
                    shutil.rmtree(work)
                raise
            shutil.rmtree(work)


def _run_passes(config: FilterConfig, plan: _Plan, work: Path, pool: Pool | None) -> list[Path]:
    """Makes the parts that are not there yet; returns those of rewrite, by rank. Removes parts of other plans."""
    memory = config.memory << 20

    def part(stage: str, number: int) -> Path:
        return work / f"{stage}-{number:05d}-{plan.digest}"

    for path in work.iterdir():
        if path.is_dir() and not path.name.endswith(plan.digest):
            shutil.rmtree(path)
    indexed = [part("evaluation", number) for number in range(len(plan.evaluation))]
    words = plan.rules.ngram_words if plan.rules.ngram_share else 0
    _run(pool, evaluation_index.index_file, "read evaluation sets", [
        (path, name, number, words, config.skip_splits, memory, indexed[number])
        for number, (path, name) in enumerate(plan.evaluation)], [path.stat().st_size for path, _ in plan.evaluation])
    index = part("index", 0) if plan.evaluation else None
    if index and not index.exists():
        evaluation_index.merge_parts(indexed, memory, index)
    if index and not any(read_json(each / PART_FILE)["texts"] for each in indexed):
        raise ValueError(f"--evaluation_dir={','.join(config.evaluation_dir)} has files, but no text in them, or only "
                         f"those of --skip_splits={','.join(config.skip_splits)}")
    sizes = [dataset.path.stat().st_size for dataset in plan.datasets]
    scanned = [part("scan", dataset.rank) for dataset in plan.datasets]
    _run(pool, passes.scan, "scan", [(dataset, plan.rules, index, memory, scanned[dataset.rank])
                                     for dataset in plan.datasets], sizes)
    rows = sorting.rows_in(sorting.runs_in(scanned, passes.IDS))
    ranges = sorting.ranges(max(1, 2 * rows * sorting.ROW_BYTES // memory, pool.workers if pool else 1))
    joined = [part(f"join-of-{len(ranges)}", number) for number in range(len(ranges))]
    _run(pool, passes.join, "find duplicates", [
        (scanned, low, high, memory, joined[number]) for number, (low, high) in enumerate(ranges)],
        [16 * rows // len(ranges)] * len(ranges))
    written = [part("rewrite", dataset.rank) for dataset in plan.datasets]
    names = [dataset.name for dataset in plan.datasets]
    _run(pool, passes.rewrite, "write", [
        (dataset, plan.rules, names, index, scanned[dataset.rank], joined, memory, written[dataset.rank])
        for dataset in plan.datasets], sizes)
    for dataset, path in zip(plan.datasets, written):
        summary = read_json(path / PART_FILE)
        scan = read_json(scanned[dataset.rank] / PART_FILE)
        write_json(path / PART_FILE, summary | {"lines": scan["lines"], "bad_lines": scan["left_out"]})
    if index:
        texts = evaluation_index.EvaluationIndex(index, words, plan.rules.ngram_share).texts_by_set()
        write_json(work / "evaluation_sets.json", texts)
    return written


def _run(pool: Pool | None, function: Any, description: str, calls: list[tuple], sizes: list[int]) -> None:
    """function(*call) for each call whose part, its last argument, is not there; the largest first."""
    waiting = sorted(((size, call) for size, call in zip(sizes, calls) if not call[-1].exists()),
                     key=lambda each: -each[0])
    if waiting:
        run_all(pool, function, [call for _, call in waiting], description, sum(size for size, _ in waiting))


def output_names(names: list[str]) -> dict[str, str]:
    """{name of a data set: that of its file}: "qa/a.tsv.gz" becomes "qa/a.jsonl.gz", unless two would have one name."""
    stems = {}
    for name in names:
        stem = name[: len(name) - len(compression_of(name))]
        stems[name] = os.path.splitext(stem)[0] + SUFFIX
    counts = collections.Counter(stems.values())
    return {name: stem if counts[stem] == 1 else name + SUFFIX for name, stem in stems.items()}


def _finish(config: FilterConfig, plan: _Plan, output: Path, written: list[Path]) -> dict[str, Any]:
    """Puts the parts together as the output. Returns the report."""
    summaries = {dataset.name: read_json(path / PART_FILE) for dataset, path in zip(plan.datasets, written)}
    names = output_names([entry.name for entry in plan.entries])
    sets_file = written[0].parent / "evaluation_sets.json"
    with new_folder(output, replace=True) as folder:
        datasets = []
        for dataset, part in zip(plan.datasets, written):
            summary, size = summaries[dataset.name], 0
            if summary["kept"]:
                file = folder / names[dataset.name]
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part / OUTPUT, file)
                size = file.stat().st_size
            datasets.append({
                "name": dataset.name, "file": names[dataset.name] if size else "", "bytes": size,
                **{key: summary[key] for key in ("lines", "bad_lines", "kept", "removed", "shortened", "evaluation",
                                                 "duplicate_of", "examples")}})
        report = {"digest": plan.digest, "settings": plan.settings, "datasets": datasets,
                  "evaluation_sets": read_json(sets_file) if plan.evaluation else {}}
        write_json(folder / DATA_CONFIG, _data_config(config, plan, summaries, names))
        write_json(folder / REPORT, report)
        (folder / TABLES).write_text(markdown_of(report), encoding="utf-8")
    for each in datasets:
        if not each["file"]:
            print(f"{each['name']}: nothing is left: it has no file and is not in {DATA_CONFIG}", file=sys.stderr)
    return report


def _data_config(
    config: FilterConfig, plan: _Plan, summaries: dict[str, dict], names: dict[str, str]
) -> list[dict[str, Any]]:
    """The entries of --data_config with the new names and counts; or with the weights that prepare would give."""
    given = {each["name"]: each for each in read_json(Path(config.data_config))} if config.data_config else {}
    entries = []
    for entry in plan.entries:
        lines = summaries[entry.name]["kept"]
        if not lines:
            continue
        kept = {key: value for key, value in given.get(entry.name, {}).items() if key != "columns"}
        entries.append(kept | {"name": names[entry.name], "lines": lines,
                               "weight": entry.weight if given else max(1, round(math.sqrt(lines)))})
    return entries
