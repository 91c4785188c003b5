"""Real texts for the benchmarks: pairs of training files, the same ones for both sides."""

import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np

from benchmarks.peers.peer import REPOSITORY
from benchmarks.processes import run
from evaluation.tasks.heldout import read_pairs

# One file of each sort of text, in equal numbers: captions (short, short), questions with a sentence (short, medium),
# titles with abstracts and titles with answers of several paragraphs (short, long).
SPEED_FILES = ("flickr30k_captions", "squad_question_sentence", "acl_title_abstract", "stackexchange_title_answer")

Pairs = list[tuple[str, str]]


def read_training_pairs(data_dir: str, names: tuple[str, ...] = ()) -> dict[str, Pairs]:
    """{name: pairs} of data_dir/train/NAME.jsonl.gz; without names, of all files there."""
    folder = pathlib.Path(data_dir, "train")
    if not folder.is_dir():
        raise ValueError(f"--data_dir={data_dir} has no folder train/")
    names = names or sorted(path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz"))
    return {name: read_pairs(folder / f"{name}.jsonl.gz") for name in names}


def draw_pairs(pairs_by_dataset: dict[str, Pairs], number: int, seed: int) -> dict[str, Pairs]:
    """About `number` pairs, an equal share of each dataset, drawn without replacement."""
    generator = np.random.default_rng(seed)
    share = -(-number // len(pairs_by_dataset))
    drawn = {}
    for name, pairs in pairs_by_dataset.items():
        if len(pairs) < share:
            raise ValueError(f"{name} has {len(pairs)} pairs, fewer than the {share} asked of it; ask for fewer")
        drawn[name] = [pairs[row] for row in generator.choice(len(pairs), share, replace=False)]
    return drawn


def hold_out(pairs_by_dataset: dict[str, Pairs], number: int, seed: int) -> tuple[dict[str, Pairs], Pairs]:
    """(the training pairs that share no text with the held-out ones, about `number` held-out pairs)."""
    heldout = [pair for pairs in draw_pairs(pairs_by_dataset, number, seed).values() for pair in pairs]
    heldout_texts = {text for pair in heldout for text in pair}
    training = {
        name: [pair for pair in pairs if heldout_texts.isdisjoint(pair)] for name, pairs in pairs_by_dataset.items()
    }
    return training, heldout


def mixed(pairs_by_dataset: dict[str, Pairs], seed: int) -> Pairs:
    """All pairs in one random order."""
    pairs = [pair for pairs in pairs_by_dataset.values() for pair in pairs]
    return [pairs[row] for row in np.random.default_rng(seed).permutation(len(pairs))]


def prepare(pairs_by_dataset: dict[str, Pairs], tokenizer: str, folder: pathlib.Path) -> pathlib.Path:
    """Shards of the pairs, by `main.py prepare`, each dataset weighted by its size; returns the folder to train on."""
    source, data_dir = folder / "source", folder / "data"
    source.mkdir(parents=True)
    entries = []
    for name, pairs in pairs_by_dataset.items():
        with gzip.open(source / f"{name}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
        entries.append({"name": f"{name}.jsonl.gz", "lines": len(pairs), "weight": len(pairs)})
    data_config = folder / "data_config.json"
    data_config.write_text(json.dumps(entries))
    run_main("prepare", f"--source_dir={source}", f"--tokenizer={tokenizer}", f"--data_dir={data_dir}",
             f"--data_config={data_config}")
    return data_dir


def distinct_sentences(pairs_by_dataset: dict[str, Pairs], longest: int, left_out: set[str], seed: int) -> list[str]:
    """The distinct texts of one line and at most `longest` characters that are not left out, in a random order."""
    texts = {text for pairs in pairs_by_dataset.values() for pair in pairs for text in pair}
    kept = sorted(text for text in texts - left_out if len(text) <= longest and len(text.splitlines()) == 1)
    return [kept[row] for row in np.random.default_rng(seed).permutation(len(kept))]


def prepare_lines(lines: list[str], tokenizer: str, folder: pathlib.Path, name: str, *options: str) -> pathlib.Path:
    """Shards of the file folder/source/name of these lines, by `main.py prepare`; returns the folder to train on."""
    source, data_dir = folder / "source", folder / "data"
    source.mkdir(parents=True)
    (source / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    run_main("prepare", f"--source_dir={source}", f"--tokenizer={tokenizer}", f"--data_dir={data_dir}", *options)
    return data_dir


def logged_scores(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """{step: scores} of the evaluations that a run has logged."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" not in line}


def run_main(*arguments: str) -> None:
    """Runs `main.py ARGUMENTS`; ValueError with the end of its stderr if it fails."""
    done = run(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    if done.returncode:
        raise ValueError(f"main.py {arguments[0]} failed with status {done.returncode}:\n{done.stderr[-4000:]}")
