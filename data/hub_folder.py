"""Folders of Hugging Face data sets, as they are downloaded: which of their files are of the training split.

Such a folder has a README.md with a YAML header. Its "configs" name files by split:

    configs:
    - config_name: pair
      data_files:                          or one pattern or list of patterns: all of them are for training
      - split: train
        path: pair/train-*                 or a list; * stays within a folder, ** does not
      - split: test
        path: pair/test-*

Without "data_files", a file whose name or folder has a word such as test or validation is of another split.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

README = "README.md"
LONGEST_HEADER = 1 << 24  # bytes; data set cards with many configurations have some hundred kB
_OTHER_SPLIT = re.compile(r"(?<![a-z])(test|testing|eval|evaluation|dev|val|valid|validation)(?![a-z])", re.IGNORECASE)


def training_files(readme: Path, names: Sequence[str]) -> list[str] | None:
    """Those of the files of a folder (paths below it) that are of its training split; None if it is no hub folder.

    Raises ValueError that names the README if its header is not YAML or its "configs" are not as above.
    """
    header = _header(readme)
    if header is None:
        return None
    try:
        patterns = list(_patterns(header.get("configs") or []))
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f'{readme}: the "configs" of its YAML header are not a list of objects with "data_files": '
                         "mend the header, or name the files in --data_config") from None
    return [name for name in names if any(
        re.fullmatch(pattern, name) and (named or not _OTHER_SPLIT.search(name)) for pattern, named in patterns)]


def _header(readme: Path) -> dict | None:
    with open(readme, "rb") as file:
        text = file.read(LONGEST_HEADER).decode(errors="replace").removeprefix("\ufeff")
    found = re.match(r"---[ \t]*\r?\n(.*?\n)---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if found is None:
        return None
    import yaml  # comes with huggingface_hub

    try:
        header = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date of month 13
        where = str(error).replace("\n", " ")
        raise ValueError(f"{readme}: its header is not YAML ({where}): mend it, or name the files in --data_config"
                         ) from None
    return header if isinstance(header, dict) else None


def _patterns(configs: list) -> Iterator[tuple[str, bool]]:
    """(regular expression, whether it names files of the training split and not only a folder)."""
    if not configs:
        yield ".*", False
    for config in configs:
        data_files = config.get("data_files")
        below = config.get("data_dir", "").strip("/")
        prefix = f"{below}/" if below not in ("", ".") else ""
        if data_files is None:
            yield re.escape(prefix) + ".*", False
        for pattern in _training_patterns(data_files):
            yield re.escape(prefix) + _as_expression(pattern.removeprefix("./")), True


def _training_patterns(data_files: Any) -> list[str]:
    """The patterns of the training split in any of the forms of "data_files"."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    if isinstance(data_files, str) or data_files is None:
        data_files = [data_files] if data_files else []
    found = []
    for each in data_files:
        if isinstance(each, dict) and str(each.get("split", "train")).split(".")[0] != "train":
            continue
        paths = each["path"] if isinstance(each, dict) else each
        found += [paths] if isinstance(paths, str) else list(paths)
    return found


def _as_expression(pattern: str) -> str:
    """A glob pattern as a regular expression: ** crosses folders, * and ? do not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join({"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
                   for part in parts)
