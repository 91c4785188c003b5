"""data_config.json as prepare reads it: datasets with their weights, and what is set for one of them only.

    [{"name": "stackexchange/titles.jsonl.gz", "lines": 127404, "weight": 1},
     {"name": "qa/train.parquet", "weight": 3, "columns": "query=question,positive=answer",
      "query_prompt": "query: ", "document_prompt": "passage: "}]

"lines" is how many the file should have: others are a warning. "columns", "query_prompt" and "document_prompt" take the
place of the flags of these names for that dataset.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from data.columns import Columns, parse_columns
from data.mixture import read_data_config

TEXT_KEYS = ("query_prompt", "document_prompt")


class Entry(NamedTuple):
    """One dataset of a data_config; None: the flag decides, or the file does not say."""

    name: str
    weight: int = 1
    lines: int | None = None
    columns: Columns | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None

    @property
    def has_own_prompts(self) -> bool:
        return self.query_prompt is not None or self.document_prompt is not None


def read_entries(path: str | os.PathLike) -> list[Entry]:
    """The datasets of a data_config. Raises ValueError that names the file and the entry."""
    weights = read_data_config(path)
    entries = []
    for number, given in enumerate(json.loads(Path(path).read_text(encoding="utf-8")), start=1):
        where = f"{path}: entry {number} ({given['name']})"
        lines = given.get("lines")
        if lines is not None and (isinstance(lines, bool) or not isinstance(lines, int) or lines < 0):
            raise ValueError(f'{where}: "lines" must be a number of lines, not {json.dumps(lines)}')
        for key in TEXT_KEYS:
            if not isinstance(given.get(key), str | None):
                raise ValueError(f'{where}: "{key}" must be a text, not {json.dumps(given[key])}')
        columns = given.get("columns")
        if columns is not None and not isinstance(columns, str | dict):
            raise ValueError(f'{where}: "columns" must be a text such as "query=question,positive=answer", or an '
                             f"object {{role: column}}, not {json.dumps(columns)}")
        columns = None if columns is None else parse_columns(columns, f'{where}: "columns"')
        entries.append(Entry(given["name"], weights[given["name"]], lines, columns, *map(given.get, TEXT_KEYS)))
    return entries
