"""Duplicates among 100 million ids, in the memory that --memory allows: time, and the most memory a process held.

The ids are those of synthetic examples: the first nine tenths differ, the last tenth repeats the first one, so how many
must be found is known. They are written as the runs of two data sets and joined by ranges, as main.py filter does it
(data/mine/filter/sorting.py). The ratio: ids per second of this, over JSON records per second of data/mine/groups.py,
which brings the miners' records together, on a sample, with one process each.
"""

import dataclasses
import itertools
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import paired_ratio, print_result, run_benchmark
from data.mine import groups, reading
from data.mine.filter import passes, sorting
from data.mine.filter.words import MULTIPLIER
from data.mine.source import Counts
from data.mine.work import processes, run_all
from data.mine.writing import new_part, write_summary
from flags import flag

DATASETS = 2
CHUNK = 1 << 18
TARGET = 5.0
OTHER_MIB = 128  # what a process holds beside its ids: Python, numpy, the modules


@dataclasses.dataclass(frozen=True)
class FilterScaleConfig:
    ids: int = flag(100_000_000, "ids that are compared", minimum=1000)
    memory: int = flag(256, "MiB that each process may take for ids", minimum=1)
    workers: int = flag(2, "processes", minimum=1)
    sample: int = flag(200_000, "ids of the comparison with data/mine/groups.py", minimum=1000)
    repetitions: int = flag(3, "times that the comparison is made", minimum=1)
    folder: str = flag("", "folder for the ids, 18 bytes each; it is emptied. Empty: the system's temporary folder")


def ids_of(places: np.ndarray) -> np.ndarray:  # [M] int64 -> [M] uint64
    """Numbers that look drawn, one for each place: multiplication and shifts that lose nothing."""
    ids = places.astype(np.uint64) + np.uint64(1)
    for _ in range(2):
        ids = ids * MULTIPLIER
        ids ^= ids >> np.uint64(32)
    return ids


def repeats(ids: int) -> int:
    """How many of the ids repeat an earlier one."""
    return ids // 10


def write_ids(first: int, end: int, ids: int, memory: int, part: Path) -> None:
    """Writes the ids of places first to end, of `ids` in all, as a data set's part."""
    distinct = ids - repeats(ids)
    with new_part(part) as temporary:
        runs = sorting.Runs(temporary, passes.IDS, memory)
        for low in range(first, end, CHUNK):
            places = np.arange(low, min(end, low + CHUNK))
            runs.add(ids_of(places % distinct), places.astype(np.uint64))
            reading.progress.at(part, 16 * (low - first))
        runs.flush()
        write_summary(temporary, Counts())


def find_repeats(ids: int, memory: int, workers: int, folder: Path) -> tuple[float, float, int]:
    """(seconds to write the ids, seconds to find the repeated ones, how many were found)."""
    bounds = [ids * each // DATASETS for each in range(DATASETS + 1)]
    scans = [folder / f"scan-{number}" for number in range(DATASETS)]
    with processes(workers) as pool:
        start = time.perf_counter()
        run_all(pool, write_ids, [(first, end, ids, memory, part) for (first, end), part
                                  in zip(itertools.pairwise(bounds), scans)], "write ids", 16 * ids)
        written = time.perf_counter()
        ranges = sorting.ranges(max(1, 2 * ids * sorting.ROW_BYTES // memory, workers))
        joined = [folder / f"join-{number:05d}" for number in range(len(ranges))]
        run_all(pool, passes.join, [(scans, low, high, memory, part) for (low, high), part in zip(ranges, joined)],
                "find duplicates", 16 * repeats(ids))
        end = time.perf_counter()
    return written - start, end - written, sorting.rows_in(sorting.runs_in(joined, passes.REPEATED))


def group_records(ids: int, memory: int, folder: Path) -> float:
    """Seconds that data/mine/groups.py takes to bring as many JSON records of the same keys together."""
    distinct, counts = ids - repeats(ids), Counts()
    keys = ids_of(np.arange(ids) % distinct).tolist()
    start = time.perf_counter()
    groups.write_scattered(folder / "scatter", ((str(key), place) for place, key in enumerate(keys)), 16, counts)
    found = sum(len(group) - 1 for index in range(16) for group in groups.groups_of(
        [folder / "scatter"], index, 16, memory, folder / "narrower", counts))
    seconds = time.perf_counter() - start
    if found != repeats(ids):
        raise ValueError(f"data/mine/groups.py found {found} repeated ids of {repeats(ids)}")
    return seconds


def benchmark(config: FilterScaleConfig) -> int:
    """Prints the times, the memory and the ratio; 1 if a target is missed."""
    memory = config.memory << 20
    folder = Path(tempfile.mkdtemp(prefix="filter_scale.", dir=config.folder or None))
    try:
        writing, finding, found = find_repeats(config.ids, memory, config.workers, folder / "all")
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10
        ours, theirs = [], []
        for number in range(config.repetitions):
            ours.append(config.sample / sum(find_repeats(config.sample, memory, 1, folder / f"ours-{number}")[:2]))
            theirs.append(config.sample / group_records(config.sample, memory, folder / f"theirs-{number}"))
    finally:
        shutil.rmtree(folder)
    ratio = paired_ratio(ours, theirs)
    print(f"{config.ids:,} ids, {config.workers} processes of {config.memory} MiB for ids: written in {writing:.0f} s, "
          f"{found:,} repeated ones found in {finding:.0f} s; a process held at most {peak:,} MiB")
    print(f"one process, {config.sample:,} ids: {ratio.ours:,.0f} ids/s; data/mine/groups.py {ratio.theirs:,.0f} "
          f"records/s; ratio {ratio}")
    is_bounded, is_right = peak <= config.memory + OTHER_MIB, found == repeats(config.ids)
    met = ratio.ratio >= TARGET and is_bounded and is_right
    print_result("filter_scale", ratio.ratio, TARGET, met, ids=config.ids, write_seconds=round(writing, 1),
                 find_seconds=round(finding, 1), peak_mib=peak, memory_mib=config.memory, workers=config.workers,
                 found=found, expected=repeats(config.ids))
    return 0 if met else 1


if __name__ == "__main__":
    run_benchmark(FilterScaleConfig, benchmark)
