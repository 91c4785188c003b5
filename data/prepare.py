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
"""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import tqdm

from data.columns import Columns, as_json, parse_columns
from data.data_config import Entry, read_entries
from data.examples import Prompts
from data.files import write_json
from data.first_block import check_first_block
from data.formats import syntax_of
from data.shards import FORMAT_VERSION, MAX_STORED_TOKENS
from data.source_file import SourceFile
from data.sources import check_files, find_datasets
from data.tokenizer import TextTokenizer, load_tokenizer
from data.writer import (
    Block,
    DatasetWriter,
    TokenisedBlock,
    blocks_of,
    is_unchanged,
    named_write_errors,
    start_worker,
    tokenise_in_worker,
)
from flags import REQUIRED, Error, flag

PRINTED_BAD_LINES = 5  # of each dataset; the manifest names more


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


def prepare(config: PrepareConfig) -> None:
    """Prepares every dataset of the configuration. Raises ValueError or OSError with what to change."""
    _check_flags(config)
    source_dir, data_dir = Path(config.source_dir), Path(config.data_dir)
    if config.data_config:
        entries, left_out = check_files(
            source_dir, config.data_config, data_dir, read_entries(config.data_config), config.allow_missing)
    else:
        names, left_out = find_datasets(source_dir, data_dir)
        entries = [Entry(name) for name in names]
    if left_out:
        print(left_out, file=sys.stderr)
    tokenizer = load_tokenizer(config.tokenizer)
    _check_prompts(config, entries)
    with named_write_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        _place_tokenizer(tokenizer, data_dir)
        (data_dir / "manifest.json").unlink(missing_ok=True)  # it is written last
    finished = {entry: _finished_manifest(config, entry, tokenizer.fingerprint) for entry in entries}
    waiting = [entry for entry in entries if finished[entry] is None]
    written = _write_datasets(config, waiting, tokenizer.fingerprint)
    manifests = [finished[entry] or written[entry.name] for entry in entries]
    with named_write_errors(data_dir):
        _write_top_files(config, entries, manifests, tokenizer)
    print(summary_table(manifests, unchanged={entry.name for entry in set(entries) - set(waiting)}))


def _check_flags(config: PrepareConfig) -> None:
    if not Path(config.source_dir).is_dir():
        raise ValueError(f"--source_dir={config.source_dir} is not a folder")
    if Path(config.data_dir).exists() and not Path(config.data_dir).is_dir():
        raise ValueError(f"--data_dir={config.data_dir} is a file: name a folder")
    source_dir, data_dir = Path(config.source_dir).resolve(), Path(config.data_dir).resolve()
    if source_dir.is_relative_to(data_dir):
        raise ValueError(f"--data_dir={config.data_dir} is --source_dir={config.source_dir}, or holds it: "
                         "choose another --data_dir")
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
    for manifest in _finished_manifests(Path(config.data_dir)):
        options = manifest["options"]
        found, has_own = Prompts(**options.get("prompts", {})), options.get("own_prompts", False)
        if manifest["name"] not in names and not has_own and found != _prompts(config):
            raise ValueError(
                f"{config.data_dir}/{manifest['name']} was prepared with {found}, not {_prompts(config)}: the datasets "
                "of a folder share the prompts of the flags. Choose another --data_dir, delete this dataset, or give "
                "it prompts of its own in --data_config"
            )


def _finished_manifests(data_dir: Path) -> list[dict]:
    """The manifests of all datasets in DATA_DIR, those of earlier runs included."""
    folders = [path.parent for path in sorted(data_dir.rglob("manifest.json"))]
    finished = [folder for folder in folders if folder != data_dir and not folder.name.endswith(".partial")]
    return [json.loads((folder / "manifest.json").read_text()) for folder in finished]


def _place_tokenizer(tokenizer: TextTokenizer, data_dir: Path) -> None:
    """Writes DATA_DIR/tokenizer, or raises if another tokenizer is there."""
    folder = data_dir / "tokenizer"
    if folder.exists():
        found = load_tokenizer(folder).fingerprint
        if found != tokenizer.fingerprint:
            raise ValueError(
                f"{data_dir} was prepared with another tokenizer: its fingerprint is {found}, that of --tokenizer is "
                f"{tokenizer.fingerprint}. Choose another --data_dir or delete this one."
            )
        return
    partial = data_dir / "tokenizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.to_folder(partial)
    os.rename(partial, folder)


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


def _source(config: PrepareConfig, entry: Entry) -> SourceFile:
    return SourceFile(Path(config.source_dir) / entry.name, config.tsv_header, config.tsv, _columns(config, entry))


def _finished_manifest(config: PrepareConfig, entry: Entry, fingerprint: str) -> dict | None:
    """The manifest of a dataset that is finished and unchanged, else None."""
    folder = Path(config.data_dir) / entry.name
    if not (folder / "manifest.json").exists():
        return None
    manifest = json.loads((folder / "manifest.json").read_text())
    current = {"format": FORMAT_VERSION, "tokenizer": fingerprint, "options": _options(config, entry)}
    if any(manifest[key] != value for key, value in current.items()):
        return None
    if manifest["skipped"]["count"] > config.max_bad_share * manifest["lines"]:
        return None  # reading it again raises the error
    shards_whole = all(
        (folder / shard["file"]).exists() and (folder / shard["file"]).stat().st_size == shard["bytes"]
        for shard in manifest["shards"]
    )
    return manifest if shards_whole and is_unchanged(manifest, Path(config.source_dir) / entry.name) else None


def _write_datasets(config: PrepareConfig, entries: list[Entry], fingerprint: str) -> dict[str, dict]:
    """Tokenises and writes the datasets; returns their manifests by name."""
    if not entries:
        return {}
    for entry in entries:
        check_first_block(_source(config, entry), config.max_bad_share)
    sources = {entry.name: _source(config, entry) for entry in entries}
    options = {entry.name: _options(config, entry) for entry in entries}
    total_bytes = sum(source.path.stat().st_size for source in sources.values())
    workers = config.workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), start_worker, (os.fspath(Path(config.data_dir) / "tokenizer"),)
    )
    progress = tqdm.tqdm(total=total_bytes, unit="B", unit_scale=True, desc="prepare", mininterval=0.5)
    blocks = (
        (entry.name, block) for entry in entries
        for block in blocks_of(sources[entry.name], config.max_tokens_per_text, _prompts(config, entry))
    )
    results = _map_in_order(pool, tokenise_in_worker, blocks, depth=2 * workers + 2)
    manifests = {}
    try:
        for name, of_name in itertools.groupby(results, key=lambda item: item[0]):
            writer = DatasetWriter(Path(config.data_dir), name, sources[name], config.records_per_shard)
            for _, block, tokenised in of_name:
                writer.add(block, tokenised)
                progress.update(sum(source.bytes_read for source in sources.values()) - progress.n)
            writer.require_few_bad_lines(config.max_bad_share)
            manifests[name] = writer.finish(fingerprint, options[name])
    except concurrent.futures.process.BrokenProcessPool as error:
        raise OSError(
            f"one of {workers} tokenising processes died, perhaps because memory ran out: set a smaller --workers"
        ) from error
    finally:
        progress.close()
        pool.shutdown(wait=True, cancel_futures=True)
    return manifests


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Holds back SIGINT; processes that are started here never get it, so that only the main one answers Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _map_in_order(
    pool: concurrent.futures.Executor,
    function: Callable[[Block], TokenisedBlock],
    items: Iterator[tuple[str, Block]],
    depth: int,
) -> Iterator[tuple[str, Block, TokenisedBlock]]:
    """Applies the function to each item in the pool; results come in order, with at most `depth` items in progress."""
    under_way = collections.deque()
    for name, block in items:
        with _without_ctrl_c():
            future = pool.submit(function, block)
        under_way.append((name, block, future))
        if len(under_way) == depth:
            name, block, future = under_way.popleft()
            yield name, block, future.result()
    for name, block, future in under_way:
        yield name, block, future.result()


def _write_top_files(
    config: PrepareConfig, entries: list[Entry], manifests: list[dict], tokenizer: TextTokenizer
) -> None:
    """Writes OUT/data_config.json, then OUT/manifest.json of every finished dataset in OUT (earlier runs' too)."""
    data_dir = Path(config.data_dir)
    counts = {manifest["name"]: manifest["examples"] for manifest in manifests}
    if config.data_config:
        weights = {entry.name: entry.weight for entry in entries}
        _warn_of_other_counts(config.data_config, entries, manifests)
    else:
        weights = {name: max(1, round(math.sqrt(count))) for name, count in counts.items()}
    write_json(data_dir / "data_config.json", [
        {"name": name, "lines": counts[name], "weight": weight} for name, weight in weights.items()])
    write_json(data_dir / "manifest.json", {
        "format": FORMAT_VERSION,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "datasets": [_summary(manifest) for manifest in _finished_manifests(data_dir)],
        "prompts": _prompts(config)._asdict(),
    })


def _summary(manifest: dict) -> dict:
    """What the top manifest says about a dataset."""
    keys = ("name", "kind", "has_negatives", "examples", "texts", "tokens", "truncated_texts")
    extra = {"skipped_lines": manifest["skipped"]["count"], "shards": len(manifest["shards"])}
    return {key: manifest[key] for key in keys} | extra


def _warn_of_other_counts(data_config: str, entries: list[Entry], manifests: list[dict]) -> None:
    for entry, manifest in zip(entries, manifests):
        if entry.lines is not None and entry.lines != manifest["lines"]:
            counts = f'"lines" is {entry.lines}, the file has {manifest["lines"]}'
            print(f"warning: {data_config}: {entry.name}: {counts}", file=sys.stderr)


def summary_table(manifests: list[dict], unchanged: set[str]) -> str:
    """One line per dataset, then the first skipped lines of each."""
    width = max(len("dataset"), *(len(manifest["name"]) for manifest in manifests))
    columns = f"{'examples':>11} {'texts':>11} {'tokens/text':>11} {'truncated':>9} {'skipped':>8}"
    head = f"{'dataset':{width}}  {'kind':8} {columns}"
    rows, named = [head], []
    for manifest in manifests:
        skipped = manifest["skipped"]
        rows.append(
            f"{manifest['name']:{width}}  {manifest['kind']:8} {manifest['examples']:11,} {manifest['texts']:11,} "
            f"{manifest['tokens'] / manifest['texts']:11.1f} {manifest['truncated_texts']:9,} {skipped['count']:8,}"
            + ("  (was finished)" if manifest["name"] in unchanged else "")
        )
        first = skipped["first"][:PRINTED_BAD_LINES]
        named += [f"skipped {manifest['name']}:{number}: {reason}" for number, reason in first]
        if manifest["ignored_keys"]:
            named.append(f"{manifest['name']}: keys that are not used: {', '.join(manifest['ignored_keys'])}")
        if skipped["count"] > len(first):
            named.append(f"skipped {manifest['name']}: {skipped['count'] - len(first)} more, see its manifest.json")
    return "\n".join(rows + named)
