"""Two joins one after the other: the first one here, on disk, the second one by the framework (Source.join)."""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.mine.groups import groups_of, write_scattered
from data.mine.source import Counts
from flags import flag

PARTITIONS = 64


@dataclasses.dataclass(frozen=True)
class JoinSettings:
    join_memory: int = flag(512, "MiB of memory for the records that are looked up, such as passages by their ids; "
                                 "what does not fit is divided on disk", minimum=16)
    scratch_dir: str = flag("", "folder for these records while they wait, about as large as the unpacked input; "
                                "empty: the system's folder for temporary files")


def grouped(
    records: Iterable[tuple[str, Any]], settings: JoinSettings, counts: Counts
) -> Iterator[list[Any]]:
    """The records of each key, in their order; the keys come in a fixed order that is not theirs."""
    if settings.scratch_dir and not Path(settings.scratch_dir).is_dir():
        raise ValueError(f"--scratch_dir={settings.scratch_dir} is no folder: name one that exists")
    with tempfile.TemporaryDirectory(prefix="allpairs-join-", dir=settings.scratch_dir or None) as folder:
        part = Path(folder) / "part"
        write_scattered(part, records, PARTITIONS, Counts())
        for index in range(PARTITIONS):
            yield from groups_of([part], index, PARTITIONS, settings.join_memory << 20, Path(folder) / "narrower",
                                 counts)
