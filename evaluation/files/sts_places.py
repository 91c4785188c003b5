"""Finds the files of the STS tasks below --data_dir.

    rank  place                                                             tasks
    0, 1  eval/T.tsv, T.tsv (or .tsv.gz): a header with sentence1,          T (sickr is in sick.tsv, stsb in stsb.tsv or
          sentence2, score[, split]                                         stsbenchmark.tsv); in sts12 to sts16 the
                                                                            column source, if present, names the part
    2     SentEval: [downstream/]STS/STS12-en-test/ and so on, with         sts12 to sts16, stsb, sickr
          STS.input.PART.txt and STS.gs.PART.txt, [downstream/]STS/
          STSBenchmark/sts-SPLIT.csv, [downstream/]SICK/SICK_SPLIT.txt
    3     SemEval's files as unpacked: any folder with STS.input.PART.txt   sts12 to sts16
          and STS.gs.PART.txt, or STS2016.input.PART.txt and so on
    4     any folder with sts-SPLIT.csv, or with SICK_SPLIT.txt             stsb, sickr
    5     a folder STS-B with GLUE's SPLIT.tsv; any SICK.txt                stsb, sickr
    6     any folder with stsb-en-SPLIT.csv: comma-separated, no header     stsb
    7     STS.input.trackN.L1-L2.txt and STS.gs.trackN.L1-L2.txt, in one    sts17
          folder or in two
    8     a folder STS2017-extended with STS.L1-L2.txt                      sts17
    9     a folder sts17-crosslingual-sts or sts22-crosslingual-sts with    sts17, sts22
          LANGUAGE/SPLIT.jsonl[.gz]
    10 f. eval/T, T or multilingual/T (.jsonl or .jsonl.gz): lines of       T, by language
          {"sentence1", "sentence2", "score", "lang"[, "split"]}

"Any folder" is --data_dir or one at most four levels below it. If a task is in several places, the one of the lowest
rank is read and the others are logged; two places of the same rank are an error. A file without splits is the test
split. A folder of rank 3 belongs to the year of whose parts it has the largest share (2012 to 2014 all have an OnWN).
If several folders belong to a year, the one with the most files is read.

SemEval 2013's SMT is left out, as in the published figures: its text is not distributed. STS22's scores are MTEB's,
from 1 to 4 (most similar). MTEB's first version of it has empty texts, which are errors here; its second has none.
"""

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from absl import logging

from evaluation.files.lines import column_names, numbered_lines, parse_object
from evaluation.files.sts_files import (
    Columns,
    Row,
    StsPair,
    read_columns,
    read_input_and_gold,
    read_json_lines,
    read_positions,
)
from evaluation.task import MissingData, data_folder
from flags import nearest

Parts = dict[str, list[StsPair]]
Tree = dict[pathlib.Path, list[str]]  # folder -> names of its files

LEVELS = 4  # of folders below --data_dir
YEARS = {
    "sts12": ("MSRpar", "MSRvid", "SMTeuroparl", "OnWN", "SMTnews"),
    "sts13": ("FNWN", "headlines", "OnWN"),
    "sts14": ("deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"),
    "sts15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "sts16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
LEFT_OUT = {"sts13": "SMT"}
LIMITS = dict.fromkeys((*YEARS, "stsb", "sts17", "stsb_multi_mt"), (0, 5)) | {"sickr": (1, 5), "sts22": (1, 4)}
PUBLISHED_PAIRS = {year: {"test": pairs} for year, pairs in zip(YEARS, (3108, 1500, 3750, 3000, 1186))} | {
    "stsb": {"train": 5749, "dev": 1500, "test": 1379}, "sickr": {"train": 4500, "dev": 500, "test": 4927}}
TASK_OF_FILE = {"sick": "sickr", "stsbenchmark": "stsb"}  # tasks whose file has another name
SICK_COLUMNS = Columns("sentence_a", "sentence_b", "relatedness_score", split="semeval_set")
SPLITS = {"train": "train", "dev": "dev", "test": "test"}
LOOKED_FOR = dict.fromkeys(YEARS, "STS/STS{}-en-test, folders with STS.input.PART.txt") | {
    "stsb": "STS/STSBenchmark, sts-SPLIT.csv, STS-B/SPLIT.tsv, stsb-en-SPLIT.csv",
    "sickr": "eval/sick.tsv, sick.tsv, SICK/SICK_SPLIT.txt, SICK.txt",
    "sts17": "STS.input.trackN.L1-L2.txt, STS2017-extended, sts17-crosslingual-sts",
    "sts22": "sts22-crosslingual-sts",
}


class StsSet(NamedTuple):
    name: str
    split: str
    parts: Parts  # one, of the set's name, if it has no parts
    by_language: bool  # parts are languages, whose scores are never compared with each other


class Place(NamedTuple):
    """Where a task was found. Only as much has been read as tells the formats apart."""

    path: pathlib.Path
    read: Callable[[str], Parts]  # of a split
    by_language: bool = False


Places = Iterator[tuple[str, Place]]  # tasks and where they are


def read_set(data_dir: str, name: str, split: str, other_suites: Sequence[str] = ()) -> StsSet:
    """The pairs of a task; other_suites are further names that --suite takes, to suggest one if `name` is misspelt.

    Raises ValueError if the task is not there, or twice at one rank, and the errors of the readers.
    """
    found = find_places(data_dir)
    if name not in found:
        there = f"the STS files of {', '.join(sorted(found))}" if found else "no file of STS pairs"
        looked_for = f"eval/{name}.tsv, {name}.tsv, multilingual/{name}.jsonl"
        if name not in LOOKED_FOR:
            near = nearest(name, [*LOOKED_FOR, *other_suites, *found]) if len(name) > 2 else ""
            raise ValueError(f"--suite={name} is unknown{f': did you mean {near}?' if near else ''}; "
                             f"--data_dir={data_dir} has {there}; looked for {looked_for}")
        looked_for = f"{looked_for}, {LOOKED_FOR[name].format(name[-2:])}"
        raise MissingData(f"--suite={name} is not in --data_dir={data_dir}, which has {there}; looked for {looked_for}")
    (place, *more), *others = (found[name][rank] for rank in sorted(found[name]))
    if more:
        raise ValueError(f"--suite={name}: found in {' and in '.join(str(each.path) for each in (place, *more))}; "
                         "choose by --data_dir")
    logging.info("%s %s: %s%s", name, split, place.path, "".join(
        f"; not read: {other.path}" for same_rank in others for other in same_rank if other.path != place.path))
    parts = place.read(split)
    pairs, published = sum(map(len, parts.values())), PUBLISHED_PAIRS.get(name, {}).get(split)
    if published not in (None, pairs):
        logging.warning("%s %s: %d pairs in %s, but %d are published", name, split, pairs, place.path, published)
    return StsSet(name, split, parts, place.by_language)


def find_places(data_dir: str) -> dict[str, dict[int, list[Place]]]:
    """{task: {rank: places}} of all that data_dir has."""
    tree = _tree(root := data_folder(data_dir))
    finders = (
        _tables(tree, root / "eval"), _tables(tree, root), _senteval(tree, root), _years(tree), _own_splits(tree),
        _glue_and_whole_sick(tree), _quoted_stsb(tree), _tracks(tree), _extended(tree), _language_folders(tree),
        *(_language_files(tree, folder) for folder in (root / "eval", root, root / "multilingual")),
    )
    found = {}
    for rank, places in enumerate(finders):
        for name, place in places:
            same_rank = found.setdefault(name, {}).setdefault(rank, [])
            if place.path.resolve() not in [other.path.resolve() for other in same_rank]:  # not by another path
                same_rank.append(place)
    return found


def _tree(root: pathlib.Path) -> Tree:
    """root and the folders at most LEVELS below it, without hidden folders and links to a folder above them.

    A folder that must not be read (lost+found, for example) is logged and left out.
    """
    tree, level = {}, [root]
    for _ in range(LEVELS + 1):
        below = []
        for folder in level:
            if folder.resolve() in folder.absolute().parents:
                continue
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except PermissionError as error:
                logging.info("left out: %s", error)
                continue
            tree[folder] = [entry.name for entry in entries if entry.is_file()]
            below += [folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        level = below
    return tree


def _files(tree: Tree, folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    return [folder / name for name in tree.get(folder, ()) if name.endswith(suffixes)]


def _tables(tree: Tree, folder: pathlib.Path) -> Places:
    for path in _files(tree, folder, ".tsv", ".tsv.gz"):
        if set(Columns()[:3]) <= set(column_names(_first_line(path, otherwise="\t".join(Columns())))):
            name = path.name.split(".tsv")[0]
            name = TASK_OF_FILE.get(name, name)
            yield name, Place(path, functools.partial(_read_table, path, name))


def _first_line(path: pathlib.Path, otherwise: str) -> str:
    """The first line; `otherwise` if the file cannot be read, so that the error comes when its task is read."""
    try:
        return next(numbered_lines(path), ("", ""))[1]
    except ValueError:
        return otherwise


def _read_table(path: pathlib.Path, name: str, split: str) -> Parts:
    if split == "test" and "split" not in column_names(_first_line(path, otherwise="")):
        logging.info("%s has no column split: all of it is used as the test split", path)
        split = ""
    rows = read_columns(path, split, Columns(part="source"), LIMITS.get(name))
    if name not in YEARS:
        return {name: [row.pair for row in rows]}
    return _parts_of_year(path, name, [row._replace(part=row.part.removeprefix("surprise.")) for row in rows])


def _parts_of_year(path: pathlib.Path, name: str, rows: list[Row]) -> Parts:
    parts = {part: [row.pair for row in rows if row.part == part] for part in YEARS[name]}
    if not any(parts.values()):
        logging.warning("%s: the column source names no part of %s, which is scored as a whole", path, name)
        return {name: [row.pair for row in rows]}
    left_out = [row for row in rows if row.part not in parts]
    for row in left_out:
        if row.part != LEFT_OUT.get(name):
            raise ValueError(f"{row.place}: source {row.part!r} is no part of {name}: {', '.join(parts)}")
    if left_out:
        logging.info("%s: left out %d pairs of %s", path, len(left_out), left_out[0].part)
    missing = [part for part, pairs in parts.items() if not pairs]
    if missing:
        raise ValueError(f"{path} has no pairs of {', '.join(missing)}, which are parts of {name}")
    return parts


def _senteval(tree: Tree, root: pathlib.Path) -> Places:
    for base in (root, root / "downstream"):
        for name in YEARS:
            folder = base / "STS" / f"STS{name[-2:]}-en-test"
            if folder in tree:
                yield name, Place(folder, functools.partial(_read_year, folder, name, _inputs_and_golds(tree[folder])))
        others = (base / "STS" / "STSBenchmark", base / "SICK")
        yield from _own_splits({folder: tree[folder] for folder in others if folder in tree})


def _inputs_and_golds(names: list[str]) -> dict[str, dict[str, str]]:
    """{part: {"input": file, "gs": file}}, either of which may be missing."""
    parts = {}
    for name in names:
        if match := re.fullmatch(r"(?:STS|STS2016)\.(input|gs)\.(?:surprise\.)?(.+)\.txt", name):
            parts.setdefault(match[2], {})[match[1]] = name
    return parts


def _years(tree: Tree) -> Places:
    best: dict[str, list[tuple[int, pathlib.Path, dict]]] = {}
    for folder, names in tree.items():
        parts = _inputs_and_golds(names)
        share = {year: len(parts.keys() & set(YEARS[year])) / len(YEARS[year]) for year in YEARS}
        year = max(share, key=share.get)
        if share[year]:
            complete = sum(len(parts.get(part, ())) for part in YEARS[year])  # files
            best.setdefault(year, []).append((complete, folder, parts))
    for year, folders in best.items():
        for complete, folder, parts in folders:
            if complete == max(folders, key=lambda each: each[0])[0]:
                yield year, Place(folder, functools.partial(_read_year, folder, year, parts))


def _read_year(folder: pathlib.Path, name: str, files: dict[str, dict[str, str]], split: str) -> Parts:
    _check_test_only(folder, split)
    prefix = "STS2016" if any("STS2016" in each for part in files.values() for each in part.values()) else "STS"
    missing = [f"{prefix}.{role}.{part}.txt" for part in YEARS[name] for role in ("input", "gs")
               if role not in files.get(part, {})]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, of the parts of {name}")
    for part in files.keys() & {LEFT_OUT.get(name)}:
        logging.info("%s: left out %s", folder, ", ".join(sorted(files[part].values())))
    num_columns = (2, 4) if name == "sts16" else (2,)  # the last two are the sentences' sources
    paths = {part: (folder / files[part]["input"], folder / files[part]["gs"]) for part in YEARS[name]}
    return {part: read_input_and_gold(*both, LIMITS[name], num_columns) for part, both in paths.items()}


def _check_test_only(path: pathlib.Path, split: str) -> None:
    if split != "test":
        raise ValueError(f"{path} has no row of the split {split!r}; it has test")


def _own_splits(tree: Tree) -> Places:
    """STS-B's and SICK's own files."""
    read = functools.partial(read_positions, positions=(5, 6, 4), num_columns=(7, 8, 9), limits=LIMITS["stsb"])
    yield from _by_split(tree, "stsb", "sts-{}.csv", read)
    read = functools.partial(_read_pairs, columns=SICK_COLUMNS, limits=LIMITS["sickr"])
    splits = {"train": "train", "dev": "trial", "test": "test_annotated"}
    yield from _by_split(tree, "sickr", "SICK_{}.txt", read, splits)


def _glue_and_whole_sick(tree: Tree) -> Places:
    glue = {folder: names for folder, names in tree.items() if folder.absolute().name == "STS-B"}
    read = functools.partial(_read_pairs, columns=Columns(), limits=LIMITS["stsb"])
    yield from _by_split(glue, "stsb", "{}.tsv", read)
    for folder, names in tree.items():
        if "SICK.txt" in names:
            yield "sickr", Place(folder / "SICK.txt", functools.partial(_read_whole_sick, folder / "SICK.txt"))


def _quoted_stsb(tree: Tree) -> Places:
    read = functools.partial(
        read_positions, positions=(0, 1, 2), num_columns=(3,), limits=LIMITS["stsb"], comma_separated=True)
    yield from _by_split(tree, "stsb", "stsb-en-{}.csv", read)


def _by_split(
    tree: Tree, name: str, pattern: str, read: Callable[[pathlib.Path], list[StsPair]], splits: dict[str, str] = SPLITS
) -> Places:
    """Folders with a file for each split; `splits` are their names in the pattern."""
    for folder, names in tree.items():
        files = {split: folder / pattern.format(there) for split, there in splits.items()
                 if pattern.format(there) in names}
        if files:
            yield name, Place(folder, functools.partial(_read_split, folder, files, name, read))


def _read_split(
    folder: pathlib.Path, files: dict[str, pathlib.Path], name: str, read: Callable[[pathlib.Path], list[StsPair]],
    split: str,
) -> Parts:
    if split not in files:
        raise ValueError(f"{folder} has no file of the split {split!r}; it has {', '.join(files)}")
    return {name: read(files[split])}


def _read_pairs(path: pathlib.Path, columns: Columns, limits: tuple, split: str = "") -> list[StsPair]:
    return [row.pair for row in read_columns(path, split, columns, limits)]


def _read_whole_sick(path: pathlib.Path, split: str) -> Parts:
    split_there = {"train": "TRAIN", "dev": "TRIAL", "test": "TEST"}.get(split, split)
    return {"sickr": _read_pairs(path, SICK_COLUMNS, LIMITS["sickr"], split_there)}


Tracks = dict[str, dict[str, set[pathlib.Path]]]  # "input" or "gs" -> track -> its files; there must be one


def _tracks(tree: Tree) -> Places:
    """SemEval 2017: input and gold are unpacked into different folders."""
    files: Tracks = {"input": {}, "gs": {}}
    for folder, names in tree.items():
        for name in names:
            if match := re.fullmatch(r"STS\.(input|gs)\.(track\w+\.\w+-\w+)\.txt", name):
                files[match[1]].setdefault(match[2], set()).add((folder / name).resolve())
    if files["input"] or files["gs"]:
        path = min(next(iter((files["input"] or files["gs"]).values())))
        yield "sts17", Place(path.parent, functools.partial(_read_tracks, files), by_language=True)


def _read_tracks(files: Tracks, split: str) -> Parts:
    parts, tracks = {}, sorted(files["input"].keys() | files["gs"].keys())
    languages = [track.partition(".")[2] for track in tracks]
    for track, language in zip(tracks, languages):
        for role in ("input", "gs"):
            paths = files[role].get(track, set())
            if len(paths) != 1:
                places = " and ".join(str(path.parent) for path in sorted(paths)) or "no folder"
                raise ValueError(f"STS.{role}.{track}.txt, of sts17, is needed once; found in {places}")
        (input_path,), (gold_path,) = files["input"][track], files["gs"][track]
        _check_test_only(input_path, split)
        part = language if languages.count(language) == 1 else track  # 4a and 4b are both Spanish and English
        parts[part] = read_input_and_gold(input_path, gold_path, LIMITS["sts17"], (2, 4))
    return parts


def _extended(tree: Tree) -> Places:
    for folder, names in tree.items():
        files = {match[1]: folder / match[0] for name in names if (match := re.fullmatch(r"STS\.(\w+-\w+)\.txt", name))}
        if files and folder.absolute().name == "STS2017-extended":
            yield "sts17", Place(folder, functools.partial(_read_extended, folder, files), by_language=True)


def _read_extended(folder: pathlib.Path, files: dict[str, pathlib.Path], split: str) -> Parts:
    _check_test_only(folder, split)
    return {language: read_positions(path, (0, 1, 2), (3,), LIMITS["sts17"]) for language, path in files.items()}


def _language_folders(tree: Tree) -> Places:
    for folder in tree:
        if match := re.fullmatch(r"(sts17|sts22)-crosslingual-sts", folder.absolute().name):
            files = [below / name for below, names in tree.items() if below.parent == folder
                     for name in names if re.fullmatch(r"(train|dev|test)\.jsonl(\.gz)?", name)]
            if files:
                read = functools.partial(_read_language_files, files, match[1])
                yield match[1], Place(folder, read, by_language=True)


def _read_language_files(files: list[pathlib.Path], name: str, split: str) -> Parts:
    parts, chosen = {}, [path for path in files if path.name.split(".")[0] == split]
    if not chosen:
        raise ValueError(f"{files[0].parent.parent} has no file of the split {split!r}; it has "
                         + ", ".join(sorted({path.name for path in files})))
    for path in chosen:
        rows = read_json_lines(path, split, LIMITS[name], language=path.parent.name, file_split=split)
        parts[path.parent.name] = [row.pair for row in rows]
    return parts


def _language_files(tree: Tree, folder: pathlib.Path) -> Places:
    for path in _files(tree, folder, ".jsonl", ".jsonl.gz"):
        keys = (*Columns()[:3], "lang")
        first_line = _first_line(path, otherwise=json.dumps(dict.fromkeys(keys)))
        try:
            there = parse_object(first_line, f"{path}:1").keys()
        except ValueError:
            continue
        if set(keys) <= there:
            name = path.name.split(".jsonl")[0]
            yield name, Place(path, functools.partial(_read_language_file, path, name), by_language=True)


def _read_language_file(path: pathlib.Path, name: str, split: str) -> Parts:
    parts = {}
    for row in read_json_lines(path, split, LIMITS.get(name)):
        parts.setdefault(row.part, []).append(row.pair)
    return parts
