"""Which files below --source_dir are datasets, and which files are left out.

Linked files and folders are read like others. A folder that is reached twice, as in a loop of links, is read once:
under its own name if it has one below --source_dir, else under the first link to it.
"""

import collections
import os
import re
from pathlib import Path

from data.formats import SUFFIXES, syntax_of
from data.mixture import read_data_config

NAMED_FILES = 10  # of those that are left out; all are counted
READ_ALREADY, NO_FILE = " (a link to a folder that is read already)", " (a broken link or no plain file)"
_NOTICE = re.compile(r"(read[ _-]?me|licen[sc]es?|copying|copyright|notice)([ ._-].*)?\.txt(\.gz)?", re.IGNORECASE)


def find_datasets(source_dir: Path, data_config: str, data_dir: Path) -> tuple[list[str], str]:
    """(names of the datasets, a sentence about the files that are left out, or "").

    The datasets are those of data_config, else every training file. A name is the file's path below source_dir.
    """
    files, others = _walk(source_dir, data_dir)
    if data_config:
        names = list(read_data_config(data_config))
        for name in names:
            _require_training_file(data_config, source_dir, name, files)
        return names, ""
    found = [name for name in files if not _NOTICE.fullmatch(os.path.basename(name))]
    left_out = _left_out(sorted([*others, *set(files) - set(found)]))
    if not found:
        raise ValueError(f"no training file in {source_dir}: names end in {_suffixes()}"
                         + (f"; {left_out}" if left_out else ""))
    return found, left_out


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
    return os.path.splitext(name)[1].lower() or "without a suffix"


def _require_training_file(data_config: str, source_dir: Path, name: str, files: list[str]) -> None:
    if not (source_dir / name).is_file():
        raise ValueError(f"{data_config}: unknown dataset {name!r}: {source_dir} has {', '.join(files) or 'none'}")
    if syntax_of(name) is None:
        raise ValueError(f"{data_config}: {name} is no training file: names end in {_suffixes()}")


def _suffixes() -> str:
    return f"{', '.join(SUFFIXES)}, or one of these and .gz"
