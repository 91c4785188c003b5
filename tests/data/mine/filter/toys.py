"""Small training and evaluation folders, and what filter makes of them."""

import gzip
import json
import pathlib

from data.mine.filter.filter import FilterConfig, filter_files


def write(folder: pathlib.Path, files: dict) -> pathlib.Path:
    """Files of lines: JSON values for .jsonl, texts for the others; bytes as they are."""
    for name, lines in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(lines, bytes):
            as_text = [json.dumps(each) if ".jsonl" in name else each for each in lines]
            lines = "".join(f"{line}\n" for line in as_text).encode()
            lines = gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines
        if not path.exists() or path.read_bytes() != lines:
            path.write_bytes(lines)
    return folder


def read(folder: pathlib.Path) -> dict:
    """{name: values of its lines} of the training files below a folder; pairs and triplets as lists."""
    found = {}
    for path in sorted(folder.rglob("*.jsonl.gz")):
        values = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        found[path.relative_to(folder).as_posix()] = [value.get("texts", value) for value in values]
    return found


def run(folder: pathlib.Path, files: dict, evaluation: dict | None = None, output: str = "out", **flags):
    """(what is kept, the report) of `files` in FOLDER/train, filtered with `evaluation` in FOLDER/eval."""
    write(folder / "train", files)
    if evaluation:
        write(folder / "eval", evaluation)
        flags["evaluation_dir"] = (str(folder / "eval"),)
    filter_files(FilterConfig(**{"source_dir": str(folder / "train"), "output": str(folder / output), "workers": 1,
                                 "memory": 1} | flags))
    return read(folder / output), json.loads((folder / output / "filter_report.json").read_text())


def dataset(report: dict, name: str) -> dict:
    return next(each for each in report["datasets"] if each["name"] == name)
