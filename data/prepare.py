"""Tokenise training files into ArrayRecord shards, on every core.

    python main.py prepare --source_dir=DIR --tokenizer=MODEL --data_dir=OUT [--data_config=FILE]

Formats: see data/formats.py. Layout of OUT: see data/shards.py. A dataset is a file below --source_dir; its name is the
path of the file below it ("stackexchange/titles.jsonl.gz"). --data_config names the datasets and their weights, as a
JSON list of {"name", "weight", "lines"}; OUT/data_config.json is written for the loader. Without --data_config every
training file below --source_dir is a dataset, and its weight is the square root of its number of examples: if it were
the number itself, large files would crowd out small ones, and with equal weights small files would be repeated too
often. In a folder of a hub data set, only the files of its training split are datasets (data/hub_folder.py). Files of
other formats, licences and readmes are left out, and one line names them.

The first block of each file is checked before anything is tokenised (data/first_block.py). Blank lines are skipped.

--columns says which columns of a table, or keys of an object, hold the texts (data/columns.py). --query_prompt and
--document_prompt are put before the texts that are tokenised. Text ids are computed without the prompts, so a text is
never a negative of itself in either role. The trained model takes the prompts of the flags from the manifest. An entry
of --data_config may have columns and prompts of its own (data/data_config.py).

If the same command is run again, it skips finished datasets: those whose source (size and time, or checksum),
tokenizer and options have not changed. A half-written dataset is never taken for finished. Ctrl-C keeps what is
finished.

More machines: a file is a unit of work, and all ways give the same bytes.

    ... --num_tasks=4 --task_index=0     task 0 of a job array: every task gets the same other flags and the same
                                         OUT on a shared file system
    ... --runner=DirectRunner -- --direct_num_workers=4 --direct_running_mode=multi_processing
                                         Apache Beam; what follows -- goes to Beam (data/beam.py)

The task that finishes last writes OUT/manifest.json. If a task failed, run it again, or run the command without
--num_tasks: it prepares what is missing.
"""

import dataclasses
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from data.columns import Columns, as_json, parse_columns
from data.data_config import Entry
from data.examples import Prompts
from data.first_block import check_first_block
from data.formats import syntax_of
from data.lock import only_prepare
from data.prepared import finished_manifests, summary_table, write_top_files
from data.shards import MAX_STORED_TOKENS
from data.sources import chosen_datasets
from data.tokenizer import TextTokenizer, load_tokenizer
from data.units import Unit, finished_manifest, of_task, write_here
from data.writer import named_write_errors
from flags import REQUIRED, Error, flag, nearest, settings_of

NAMED_DATASETS = 10  # of those that are not finished


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    source_dir: str = flag(
        REQUIRED, "folder of training files: .jsonl, .tsv, .csv, .txt, each also compressed (.gz, .bz2, .xz, .zst), "
        "and .parquet; its subfolders are read too")
    tokenizer: str = flag(REQUIRED, "model whose tokenizer is used: a folder, a tokenizer.json or a hub id")
    data_dir: str = flag(REQUIRED, "folder that is written: shards, manifests, tokenizer, data_config.json")
    data_config: str = flag(
        "", 'file with a JSON list of {"name", "weight", "lines"}: the datasets to prepare; empty: every training file')
    allow_missing: bool = flag(
        False, "prepare the files of --data_config that are there, and list the others; false: a missing file is an "
        "error")
    columns: tuple[str, ...] = flag(
        (), "which columns of .csv, .tsv and .parquet files, or keys of .jsonl objects, hold the texts: "
        "query=question,positive=answer, optionally also negative=COLUMN and score=COLUMN; a .csv or .tsv file then "
        "has a header, unless its columns are named by their numbers, from 1; empty: as data/formats.py says")
    max_tokens_per_text: int = flag(
        512, "tokens stored per text; longer texts are truncated and counted", minimum=1,
        maximum=MAX_STORED_TOKENS)
    records_per_shard: int = flag(1_000_000, "examples per shard file", minimum=1)
    max_bad_share: float = flag(
        0.01, "largest share of bad lines that a file may have; they are left out and counted", minimum=0, maximum=1)
    tsv: Literal["texts", "parallel"] = flag(
        "texts", "how the columns of .tsv files are read. texts: a pair or triplet; parallel: a text, its translations")
    tsv_header: bool = flag(False, "the first line of each .tsv and .csv file holds column names and is skipped")
    query_prompt: str = flag("", 'text put before each query (the first text of an example), such as "query: "')
    document_prompt: str = flag("", 'text put before each positive and negative, such as "passage: "')
    workers: int = flag(0, "processes that tokenise; 0: one per core", minimum=0)
    num_tasks: int = flag(1, "tasks of a job array that share the files; 1: no job array", minimum=1)
    task_index: int = flag(0, "which of the tasks this is, from 0", minimum=0)
    runner: str = flag(
        "", "Apache Beam's runner, such as DirectRunner, FlinkRunner or DataflowRunner; what follows -- goes to Beam. "
        "empty: no Beam")


def prepare(config: PrepareConfig, others: Sequence[str] = ()) -> None:
    """Prepares every dataset of the configuration, or those of one task. `others` are Beam's flags, after "--".

    Raises ValueError or OSError with what to change.
    """
    beam_flags = _beam_flags(config, others)
    _check_flags(config)
    write = functools.partial(write_here, workers=config.workers)
    if config.runner:
        from data.beam import beam_options, write_with_beam  # apache_beam is an extra

        write = functools.partial(
            write_with_beam, runner=config.runner, options=beam_options(config.runner, beam_flags))
    entries = chosen_datasets(
        Path(config.source_dir), config.data_config, Path(config.data_dir), config.allow_missing)
    tokenizer = load_tokenizer(config.tokenizer)
    _check_prompts(config, entries)
    data_dir = Path(config.data_dir)
    with named_write_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
    with only_prepare(data_dir, config.task_index, config.num_tasks):
        with named_write_errors(data_dir):
            _place_tokenizer(tokenizer, data_dir, alone=config.num_tasks == 1)
        units = [_unit(config, entry, tokenizer.fingerprint) for entry in entries]
        mine = of_task(units, config.task_index, config.num_tasks)
        waiting = [unit for unit in units if unit in mine and finished_manifest(unit) is None]
        _write(config, waiting, write)
        manifests = [finished_manifest(unit) for unit in units]
        names = {unit.name for unit in mine}
        printed = [manifest for unit, manifest in zip(units, manifests) if unit.name in names]
        unchanged = names - {unit.name for unit in waiting}
        missing = [unit.name for unit, manifest in zip(units, manifests) if manifest is None]
        if not missing:
            with named_write_errors(data_dir):
                write_top_files(data_dir, config.data_config, entries, manifests, tokenizer, _prompts(config))
    if printed:
        print(summary_table(printed, unchanged))
    if missing:
        _report_missing(config, missing)


def _write(config: PrepareConfig, waiting: list[Unit], write: Callable[[list[Unit]], None]) -> None:
    """Writes the shards and manifests of the files that are not finished."""
    if not waiting:
        return
    with named_write_errors(Path(config.data_dir)):
        (Path(config.data_dir) / "manifest.json").unlink(missing_ok=True)  # it is written last
    for unit in waiting:
        check_first_block(unit.source(), config.max_bad_share)
    write(waiting)


def _report_missing(config: PrepareConfig, missing: list[str]) -> None:
    """Says which datasets other tasks still have to write. Without a job array a missing dataset is an error."""
    named = ", ".join(missing[:NAMED_DATASETS]) + (", ..." if len(missing) > NAMED_DATASETS else "")
    if config.num_tasks == 1:
        raise ValueError(f"{len(missing)} datasets are not finished or changed meanwhile ({named}): run the command "
                         "again")
    print(f"task {config.task_index} of {config.num_tasks} has finished. {len(missing)} datasets of other tasks are "
          f"not finished with these flags: {named}. The last task writes {config.data_dir}/manifest.json. If no task "
          "runs any more, run the command without --num_tasks", file=sys.stderr)


def _beam_flags(config: PrepareConfig, others: Sequence[str]) -> list[str]:
    """Beam's flags: what follows "--". Raises flags.Error for other arguments, and for Beam's flags without Beam."""
    others = list(others)
    wrong, found = (others, []) if "--" not in others else (others[: others.index("--")], others[others.index("--"):])
    if wrong:
        if not wrong[0].startswith("-"):
            raise Error(f"not a flag: {wrong[0]!r}")
        name = wrong[0].lstrip("-").split("=")[0]
        near = nearest(name, [setting.name for setting in settings_of(config)])
        raise Error(f"there is no flag --{name}" + (f": did you mean --{near}?" if near else ""))
    if found and not config.runner:
        raise Error(f"{' '.join(found)}: Beam's flags need --runner")
    return found[1:]


def _check_flags(config: PrepareConfig) -> None:
    if not Path(config.source_dir).is_dir():
        raise ValueError(f"--source_dir={config.source_dir} is not a folder")
    if Path(config.data_dir).exists() and not Path(config.data_dir).is_dir():
        raise ValueError(f"--data_dir={config.data_dir} is a file: name a folder")
    source_dir, data_dir = Path(config.source_dir).resolve(), Path(config.data_dir).resolve()
    if source_dir.is_relative_to(data_dir):
        raise ValueError(f"--data_dir={config.data_dir} is --source_dir={config.source_dir}, or holds it: "
                         "choose another --data_dir")
    if config.task_index >= config.num_tasks:
        raise Error(f"--task_index={config.task_index} is not below --num_tasks={config.num_tasks}")
    if config.runner and config.num_tasks > 1:
        raise Error(f"--runner={config.runner} spreads the files itself: leave out --num_tasks={config.num_tasks}")
    for role, prompt in _prompts(config)._asdict().items():
        _check_prompt(f"--{role}_prompt", prompt)
    if _columns(config) and config.tsv == "parallel":
        raise Error("--columns and --tsv=parallel both say how the columns of .tsv files are read: give one of them")


def _columns(config: PrepareConfig, entry: Entry | None = None) -> Columns | None:
    """The columns of a dataset: its own, or those of the flag."""
    try:
        return (entry.columns if entry else None) or parse_columns(config.columns, "--columns")
    except ValueError as error:
        raise Error(str(error)) from None


def _prompts(config: PrepareConfig, entry: Entry | None = None) -> Prompts:
    """The prompts of a dataset: its own, or those of the flags."""
    own = (entry.query_prompt, entry.document_prompt) if entry else (None, None)
    of_flags = (config.query_prompt, config.document_prompt)
    return Prompts(*(flag if its_own is None else its_own for its_own, flag in zip(own, of_flags)))


def _check_prompt(where: str, prompt: str) -> None:
    if prompt != prompt.lstrip():  # texts are stripped together with their prompt
        raise ValueError(f"{where}={prompt!r} begins with white space")


def _check_prompts(config: PrepareConfig, entries: list[Entry]) -> None:
    """Raises for a prompt that begins with white space, and if DATA_DIR holds other datasets with other prompts."""
    for entry in entries:
        for role, prompt in _prompts(config, entry)._asdict().items():
            _check_prompt(f'{config.data_config}: {entry.name}: "{role}_prompt"', prompt)
    names = {entry.name for entry in entries}
    for manifest in finished_manifests(Path(config.data_dir)):
        options = manifest["options"]
        found, has_own = Prompts(**options.get("prompts", {})), options.get("own_prompts", False)
        if manifest["name"] not in names and not has_own and found != _prompts(config):
            raise ValueError(
                f"{config.data_dir}/{manifest['name']} was prepared with {found}, not {_prompts(config)}: the datasets "
                "of a folder share the prompts of the flags. Choose another --data_dir, delete this dataset, or give "
                "it prompts of its own in --data_config"
            )


def _place_tokenizer(tokenizer: TextTokenizer, data_dir: Path, alone: bool) -> None:
    """Writes DATA_DIR/tokenizer, or raises if another tokenizer is there. Unless `alone`, other tasks may do it too."""
    folder = data_dir / "tokenizer"
    for left in data_dir.glob("tokenizer.*.partial") if alone else ():
        shutil.rmtree(left, ignore_errors=True)  # by a killed process
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix="tokenizer.", suffix=".partial", dir=data_dir) as temporary:
            tokenizer.to_folder(Path(temporary) / "tokenizer")
            try:
                os.rename(Path(temporary) / "tokenizer", folder)
                return
            except OSError:  # another task was first
                if not folder.exists():
                    raise
    found = load_tokenizer(folder).fingerprint
    if found != tokenizer.fingerprint:
        raise ValueError(
            f"{data_dir} was prepared with another tokenizer: its fingerprint is {found}, that of --tokenizer is "
            f"{tokenizer.fingerprint}. Choose another --data_dir or delete this one."
        )


def _options(config: PrepareConfig, entry: Entry) -> dict:
    """The settings that decide what is in a dataset's shards."""
    syntax, columns = syntax_of(entry.name), _columns(config, entry)
    return {
        "max_tokens_per_text": config.max_tokens_per_text,
        "records_per_shard": config.records_per_shard,
        "tsv_header": config.tsv_header and syntax in ("tsv", "csv"),
        "tsv": config.tsv if syntax == "tsv" else "texts",
        "columns": as_json(columns) if syntax != "text" else {},
        "prompts": _prompts(config, entry)._asdict(),
        "own_prompts": entry.has_own_prompts,
    }


def _unit(config: PrepareConfig, entry: Entry, fingerprint: str) -> Unit:
    return Unit(
        entry.name, Path(config.source_dir) / entry.name, Path(config.data_dir), fingerprint, config.tsv_header,
        config.tsv, _columns(config, entry), _prompts(config, entry), config.max_bad_share, _options(config, entry))
