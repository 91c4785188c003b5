"""Which files below --source_dir are datasets, and which files are left out.

Linked files and folders are read like others. A folder that is reached twice, as in a loop of links, is read once:
under its own name if it has one below --source_dir, else under the first link to it. In a folder of a hub data set only
the files of the training split are datasets (data/hub_folder.py).
"""

import collections
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data.data_config import Entry, read_entries
from data.formats import known_suffixes, syntax_of
from data.hub_folder import README, training_files

NAMED_FILES = 10  # of those that are left out; all are counted
READ_ALREADY, NO_FILE = " (a link to a folder that is read already)", " (a broken link or no plain file)"
OTHER_SPLIT = " (not of the training split)"
NOTICE = re.compile(r"(read[ _-]?me|licen[sc]es?|copying|copyright|notice)([ ._-].*)?\.txt(\.\w+)?", re.IGNORECASE)


def find_datasets(source_dir: Path, data_dir: Path) -> tuple[list[str], str]:
    """(names of the datasets: all training files, a sentence about the files that are left out, or "").

    A name is the file's path below source_dir.
    """
    files, others = _walk(source_dir, data_dir)
    found = [name for name in files if not NOTICE.fullmatch(os.path.basename(name))]
    notices = set(files) - set(found)
    other_splits = _other_splits(source_dir, found, others)
    found = [name for name in found if name not in other_splits]
    left_out = _left_out(sorted([*others, *notices, *(name + OTHER_SPLIT for name in other_splits)]))
    if not found:
        raise ValueError(f"no training file in {source_dir}: names end in {known_suffixes()}"
                         + (f"; {left_out}" if left_out else ""))
    return found, left_out


def chosen_datasets(source_dir: Path, data_config: str, output: Path, allow_missing: bool) -> list[Entry]:
    """The datasets of data_config, or if it is empty those of source_dir; prints what is left out."""
    if data_config:
        entries, left_out = check_files(source_dir, data_config, output, read_entries(data_config), allow_missing)
    else:
        names, left_out = find_datasets(source_dir, output)
        entries = [Entry(name) for name in names]
    if left_out:
        print(left_out, file=sys.stderr)
    return entries


def check_files(
    source_dir: Path, data_config: str, data_dir: Path, entries: Sequence[Entry], allow_missing: bool
) -> tuple[list[Entry], str]:
    """(the entries of data_config whose files are there, a list of the missing files with their lines, or "").

    Raises ValueError with that list, unless allow_missing is set; if no file is there; and for a file whose name is not
    that of a training file.
    """
    for entry in entries:
        if syntax_of(entry.name) is None:
            raise ValueError(f"{data_config}: {entry.name} is no training file: names end in {known_suffixes()}")
    present = [entry for entry in entries if (source_dir / entry.name).is_file()]
    missing = [entry for entry in entries if not (source_dir / entry.name).is_file()]
    if not missing:
        return present, ""
    rows = [f"missing {source_dir / entry.name}: "
            + ("unknown lines" if entry.lines is None else f"{entry.lines:,} lines") for entry in missing]
    lines = sum(entry.lines or 0 for entry in missing)
    summary = (f"{data_config}: {len(missing):,} of its {len(entries):,} files"
               + (f", of {lines:,} lines," if lines else "") + " are missing")
    listed = "\n".join([*rows, summary])
    if allow_missing and present:
        return present, f"{listed}: they are left out"
    files, _ = _walk(source_dir, data_dir)
    named = ", ".join(files[:NAMED_FILES]) + (", ..." if len(files) > NAMED_FILES else "") or "no training file"
    advice = "name another --source_dir" if not present else "add them, or set --allow_missing"
    raise ValueError(f"{listed}; {source_dir} has {named}: {advice}")


def _other_splits(source_dir: Path, files: list[str], others: list[str]) -> set[str]:
    """The training files that lie in a folder of a hub data set and are not of its training split."""
    found = set()
    for readme in (name for name in others if os.path.basename(name) == README):
        below = readme.removesuffix(README)
        names = [name.removeprefix(below) for name in files if name.startswith(below)]
        kept = training_files(source_dir / readme, names)
        found |= set() if kept is None else {below + name for name in set(names) - set(kept)}
    return found


def _walk(source_dir: Path, data_dir: Path) -> tuple[list[str], list[str]]:
    """Paths below source_dir, sorted: files of a training format, and what else is there. data_dir is not entered."""
    files, others = [], []
    seen = {os.path.realpath(data_dir)}
    waiting = collections.deque([(Path(source_dir), "")])  # (folder, its path below source_dir); links come last
    while waiting:
        folder, below = waiting.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            if folder.is_symlink():
                others.append(below + READ_ALREADY)
            continue
        seen.add(real)
        folders = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                if entry.is_symlink():
                    waiting.append((folder / entry.name, name))
                else:
                    folders.append((folder / entry.name, name))
            elif entry.is_file() and syntax_of(name) is not None:
                files.append(name)
            else:
                others.append(name if entry.is_file() else name + NO_FILE)
        waiting.extendleft(reversed(folders))
    return sorted(files, key=Path), others


def _left_out(names: list[str]) -> str:
    if not names:
        return ""
    counts = collections.Counter(_kind(name) for name in names)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(NAMED_FILES))
    more = f" and {len(names) - NAMED_FILES:,} more" if len(names) > NAMED_FILES else ""
    return f"left out, because they are no training files: {kinds}: {', '.join(names[:NAMED_FILES])}{more}"


def _kind(name: str) -> str:
    """The suffix of a file that is left out, in lower case."""
    if name.endswith((READ_ALREADY, NO_FILE)):
        return "links or special files"
    if name.endswith(OTHER_SPLIT):
        return "of other splits"
    return os.path.splitext(name)[1].lower() or "without a suffix"
