"""What stands at the top of a prepared folder: data_config.json, manifest.json, and the table that prepare prints."""

import math
import os
import sys
from pathlib import Path

from data.data_config import Entry
from data.examples import Prompts
from data.files import read_json, write_json
from data.shards import FORMAT_VERSION
from data.tokenizer import TextTokenizer

PRINTED_BAD_LINES = 5  # of each dataset; the manifest names more


def finished_manifests(data_dir: Path) -> list[dict]:
    """The manifests of all datasets in DATA_DIR, those of earlier runs included, by the datasets' paths.

    Other tasks may write and rename folders meanwhile: one that disappears is passed over.
    """
    found = []
    for folder, folders, files in os.walk(data_dir):
        is_dataset = "manifest.json" in files and Path(folder) != data_dir
        folders[:] = [] if is_dataset else [name for name in folders if not name.endswith(".partial")]
        if is_dataset:
            found.append(Path(folder) / "manifest.json")
    manifests = []
    for path in sorted(found):
        try:
            manifests.append(read_json(path))
        except FileNotFoundError:
            continue
    return manifests


def write_top_files(
    data_dir: Path, data_config: str, entries: list[Entry], manifests: list[dict], tokenizer: TextTokenizer,
    prompts: Prompts,
) -> None:
    """Writes OUT/data_config.json, then OUT/manifest.json of every finished dataset in OUT (earlier runs' too)."""
    counts = {manifest["name"]: manifest["examples"] for manifest in manifests}
    if data_config:
        weights = {entry.name: entry.weight for entry in entries}
        _warn_of_other_counts(data_config, entries, manifests)
    else:
        weights = {name: max(1, round(math.sqrt(count))) for name, count in counts.items()}
    write_json(data_dir / "data_config.json", [
        {"name": name, "lines": counts[name], "weight": weight} for name, weight in weights.items()])
    write_json(data_dir / "manifest.json", {
        "format": FORMAT_VERSION,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "datasets": [_summary(manifest) for manifest in finished_manifests(data_dir)],
        "prompts": prompts._asdict(),
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
