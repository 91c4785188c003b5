"""Mine training files from raw dumps and published raw files.

    python main.py mine SOURCE --input=FILE|FOLDER|GLOB ... --output=DIR        python main.py mine --help

Writes DIR/NAME.jsonl.gz, or NAME.tsv.gz for translations, in the formats of data/formats.py, and DIR/manifest.json:
every input with its checksum, every rule with how many records it left out, the number of lines of each output, and the
licence. Dumps are streamed, on all cores; memory does not grow with their size. The output depends on the inputs and
the flags, not on --workers. Finished parts lie in DIR/.parts: the same command goes on after Ctrl-C or a crash. A
finished output is mined again only if its inputs or rules have changed.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.files import WRITTEN, file_state, foreign_files, read_json, write_errors_named, write_json
from data.lock import only_one
from data.mine import groups, reading
from data.mine.source import Counts, NoSettings, Source, Unit
from data.mine.sources import SOURCES
from data.mine.work import Pool, cores, processes, run_all
from data.mine.writing import file_name, join_parts, new_part, sha256_of, total, write_part, write_summary
from flags import REQUIRED, Repeated, flag, nearest, run_program, values_of

VERSION = 1  # of the framework: another one means that a finished output is mined again
PARTS = ".parts"
MANIFEST = "manifest.json"
EXPANSION = 8  # scattered bytes per byte of input, if it is compressed: a guess, wrong ones cost time only
PRINTED_RULES = 20


@dataclasses.dataclass(frozen=True)
class MineConfig:
    input: Repeated = flag(REQUIRED, "file, folder or glob that is mined; give it again for more. Of a folder, and "
                                     "the folders in it, the files are taken that the source expects")
    output: str = flag(REQUIRED, "folder that is written: training files and manifest.json")
    workers: int = flag(0, "processes; 0: one per core", minimum=0)
    memory: int = flag(1024, "MiB that each process may take for records that it brings together, such as a question "
                             "and its answers; what does not fit is divided on disk", minimum=16)
    rules: Any = dataclasses.field(default=NoSettings())


def main(arguments: list[str]) -> int:
    """`main.py mine SOURCE --flag=value ...`: chooses the source and runs it with its own flags."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", "-help", "help"):
        print(usage())
        return 0
    source = next((source for source in SOURCES if source.name == name), None)
    if source is None:
        names = [source.name for source in SOURCES]
        near = nearest(name, names) if name and not name.startswith("-") else ""
        said = f"there is no source {name!r}" if name and not name.startswith("-") else "name a source first"
        print(f"main.py mine: {said}" + (f": did you mean {near}?" if near else f": one of {', '.join(names)}"),
              file=sys.stderr)
        return 2
    config = MineConfig(rules=source.settings())
    rules = sys.modules[(source.mine or source.scatter).__module__].__doc__
    description = f"{source.name}: {source.expects}\n\nLicence: {source.licence}\n\n{rules}\n{__doc__}"
    run_program(f"python main.py mine {name}", config, functools.partial(mine, source), arguments[1:],
                description=description)


def usage() -> str:
    """The text of `main.py mine --help`."""
    lines = [__doc__.strip(), "", "Sources (main.py mine SOURCE --help lists the flags of one):"]
    return "\n".join([*lines, *(f"  {source.name:24s} {source.expects}" for source in SOURCES)])


def mine(source: Source, config: MineConfig) -> None:
    """Mines the inputs of a source. Raises ValueError or OSError with what to change."""
    output = Path(config.output)
    units = source.units(find_inputs(config.input, source, output))
    plan = _plan(source, config, units)
    if _is_finished(output, plan, units):
        print(f"{output} is finished: its inputs and rules have not changed")
        return
    _check_output(output, source)
    with write_errors_named(output), _only_run(output):
        with processes(min(config.workers or cores(), max(len(units), plan["partitions"]))) as pool:
            parts = _mine_parts(source, config, units, plan, pool)
        manifest = _finish(source, config, units, plan, parts)
    print(summary(manifest, output))


def find_inputs(inputs: tuple[str, ...], source: Source, output: Path) -> list[Path]:
    """The files that --input names, each once: a file, those of a folder that the source expects, or those of a glob.

    Raises ValueError naming an input that holds no file.
    """
    found: dict[str, Path] = {}
    for text in inputs:
        matches = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            raise ValueError(f"--input={text}: there is no such file or folder, and no file matches it")
        for path in map(Path, matches):
            for file in _files_of(path, source, output) if path.is_dir() else [path]:
                found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _files_of(folder: Path, source: Source, output: Path) -> list[Path]:
    """The files of a folder, and of those in it, that the source expects; not hidden ones, nor those of the output."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()
             and not any(part.startswith(".") for part in path.relative_to(folder).parts)
             and output.absolute() not in path.absolute().parents]
    taken = [path for path in files if re.fullmatch(source.files, path.name, re.IGNORECASE)]
    if not taken:
        raise ValueError(f"--input={folder}: no file in this folder is one that {source.name} expects: "
                         f"{source.expects}. A file that is named itself is always taken")
    if others := sorted(map(str, set(files) - set(taken))):
        print(f"left out of {folder}: {len(others)} files that {source.name} does not expect: "
              f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}", file=sys.stderr)
    return taken


def _plan(source: Source, config: MineConfig, units: list[Unit]) -> dict[str, Any]:
    """What decides the output, beside the contents of the inputs."""
    partitions = 1
    if source.scatter:
        size = sum(path.stat().st_size for unit in units for path in unit) * EXPANSION
        while partitions < groups.MAX_PARTITIONS and partitions * (config.memory << 20) < 2 * size:
            partitions *= 2
    settings = {name: list(value) if isinstance(value, tuple) else value
                for name, value in values_of(config.rules).items()}
    return {"source": source.name, "version": [VERSION, source.version], "settings": settings,
            "partitions": partitions}


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:20]


def _states(units: list[Unit]) -> list[dict[str, Any]]:
    return [{"path": str(path), **file_state(path)} for unit in units for path in unit]


def _is_finished(output: Path, plan: dict[str, Any], units: list[Unit]) -> bool:
    """Whether the output was made by this plan, of inputs with the same times or else the same contents."""
    if not (output / MANIFEST).is_file():
        return False
    manifest = read_json(output / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("plan") != plan:
        return False
    sizes = {name: entry["bytes"] for name, entry in manifest["outputs"].items()}
    if any(not (path := output / file_name(name)).exists() or path.stat().st_size != size
           for name, size in sizes.items()):
        return False
    now, then = _states(units), manifest["inputs"]
    if [(each["path"], each["bytes"]) for each in now] != [(each["path"], each["bytes"]) for each in then]:
        return False
    return all(new["mtime_ns"] == old["mtime_ns"] or sha256_of(Path(new["path"])) == old["sha256"]
               for new, old in zip(now, then))


def _check_output(output: Path, source: Source) -> None:
    """Raises ValueError if the folder holds what is not this source's output."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output={output} is a file: name a folder")
    foreign = [name for name in foreign_files(output) if not name.startswith(PARTS + "/")]
    if foreign:
        raise ValueError(f"--output={output} holds files that were not written by mine ({', '.join(foreign[:5])}"
                         f"{', ...' if len(foreign) > 5 else ''}): choose another folder")
    if (output / MANIFEST).is_file() and (found := read_json(output / MANIFEST).get("source")) != source.name:
        raise ValueError(f"--output={output} holds what was mined from {found}, not {source.name}: "
                         "choose another folder")


@contextlib.contextmanager
def _only_run(output: Path) -> Iterator[None]:
    """Holds OUTPUT/.parts/lock, which the kernel frees when the process ends. Removes what it made if that is all."""
    made, parts = not output.exists(), output / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with only_one(parts / "lock", f"--output={output}", "folder"):
        try:
            yield
        finally:
            if parts.exists() and os.listdir(parts) == ["lock"]:
                shutil.rmtree(parts)
                if made:
                    output.rmdir()


def _mine_parts(
    source: Source, config: MineConfig, units: list[Unit], plan: dict[str, Any], pool: Pool | None
) -> list[Path]:
    """Mines what is not there yet; the finished parts of all stages. Removes parts of other plans."""
    folder = Path(config.output) / PARTS
    states = [_states([unit]) for unit in units]
    function, stage = (_scatter_unit, "scatter") if source.scatter else (_mine_unit, "mine")
    parts = [folder / f"{stage}-{index:05d}-{_digest(plan, state)}" for index, state in enumerate(states)]
    joined = [folder / f"join-{index:05d}-{_digest(plan, states)}"
              for index in range(plan["partitions"] if source.scatter else 0)]
    sums = [folder / f"checksum-{index:05d}-{_digest(state)}" for index, state in enumerate(states)]
    for path in folder.iterdir():
        if path.is_dir() and path not in {*parts, *joined, *sums}:
            shutil.rmtree(path)
    waiting = [index for index, part in enumerate(parts) if not part.exists()]
    read = sum(state["bytes"] for index in waiting for state in states[index])
    helpers = max(1, (config.workers or cores()) // max(1, len(waiting)))
    calls = [(source, units[index], config.rules, plan["partitions"], parts[index], helpers) for index in waiting]
    run_all(pool, function, calls, f"read {source.name}", read)
    if source.scatter:
        files = [groups.partition_files(parts, index) for index in range(plan["partitions"])]
        waiting = [index for index, part in enumerate(joined) if files[index] and not part.exists()]
        calls = [(source, config, parts, index, plan["partitions"], joined[index]) for index in waiting]
        size = sum(path.stat().st_size for index in waiting for path in files[index])
        run_all(pool, _join_partition, calls, f"join {source.name}", size)
    waiting = [index for index, part in enumerate(sums) if not part.exists()]
    run_all(pool, _checksum_unit, [(units[index], sums[index]) for index in waiting], "checksums",
            sum(state["bytes"] for index in waiting for state in states[index]))
    return [part for part in parts + joined + sums if part.exists()]


def _mine_unit(source: Source, unit: Unit, settings: Any, partitions: int, part: Path, helpers: int) -> None:
    reading.helpers = helpers
    counts = Counts()
    write_part(part, source.mine(unit, settings, counts), counts)


def _scatter_unit(source: Source, unit: Unit, settings: Any, partitions: int, part: Path, helpers: int) -> None:
    reading.helpers = helpers
    counts = Counts()
    groups.write_scattered(part, source.scatter(unit, settings, counts), partitions, counts)


def _join_partition(
    source: Source, config: MineConfig, parts: list[Path], index: int, partitions: int, part: Path
) -> None:
    counts = Counts()
    scratch = part.with_name(part.name + ".narrower")
    shutil.rmtree(scratch, ignore_errors=True)
    of_keys = groups.groups_of(parts, index, partitions, config.memory << 20, scratch, counts)
    write_part(part, (pair for records in of_keys for pair in source.join(records, config.rules, counts)), counts)


def _checksum_unit(unit: Unit, part: Path) -> None:
    with new_part(part) as temporary:
        write_summary(temporary, Counts(), sha256={str(path): sha256_of(path) for path in unit})


def _finish(
    source: Source, config: MineConfig, units: list[Unit], plan: dict[str, Any], parts: list[Path]
) -> dict[str, Any]:
    """Joins the parts to the output and writes the manifest last. Returns the manifest."""
    output = Path(config.output)
    counts, lines, checksums = total(parts)
    finals = {name: name for name in lines} | (source.merge(lines, config.rules) if source.merge else {})
    if not lines:
        raise ValueError("; ".join(["nothing was mined: no record passed the rules", *counts.notes, *(
            f"{count:,} left out: {rule}" for rule, count in counts.most_common(PRINTED_RULES))]))
    new = output / PARTS / "output"
    shutil.rmtree(new, ignore_errors=True)
    files = join_parts(parts, finals, new)
    inputs = [state | {"sha256": checksums[state["path"]]} for state in _states(units)]
    outputs = {}
    for final in sorted(set(finals.values())):
        outputs[final] = {"lines": sum(count for name, count in lines.items() if finals[name] == final),
                          "bytes": (new / file_name(final)).stat().st_size}
    manifest = {"source": source.name, "plan": plan, "licence": source.licence, "inputs": inputs,
                "left_out": dict(sorted(counts.items())), "notes": counts.notes, "outputs": outputs}
    _replace(output, new, files)
    write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / PARTS)
    return manifest


def _replace(output: Path, new: Path, names: list[str]) -> None:
    """Moves the new files into the output and removes what an earlier run wrote there."""
    before = read_json(output / WRITTEN) if (output / WRITTEN).exists() else []
    write_json(output / WRITTEN, sorted({*before, *names, MANIFEST, WRITTEN}))  # a killed run's files are not foreign
    (output / MANIFEST).unlink(missing_ok=True)
    for name in set(before) - {*names, MANIFEST, WRITTEN}:
        (output / name).unlink(missing_ok=True)
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, output / name)
    write_json(output / WRITTEN, sorted([*names, MANIFEST, WRITTEN]))


def summary(manifest: dict[str, Any], output: Path) -> str:
    """A line for each output, each rule that left something out, and each note."""
    rows = [f"{entry['lines']:13,} lines   {output / file_name(name)}" for name, entry in manifest["outputs"].items()]
    ordered = sorted(manifest["left_out"].items(), key=lambda item: -item[1])
    rows += [f"{count:13,} left out: {rule}" for rule, count in ordered[:PRINTED_RULES]]
    if len(ordered) > PRINTED_RULES:
        rows.append(f"{len(ordered) - PRINTED_RULES} more rules: see {output / MANIFEST}")
    return "\n".join([*rows, *manifest["notes"]])
