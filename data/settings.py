"""The loader's settings: which examples make a batch, and how they are packed. Both are groups of train's flags."""

import dataclasses
from typing import Literal

from flags import REQUIRED, flag

Views = Literal["given", "identical", "word_dropout", "crop", "single"]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    data_dir: str = flag(REQUIRED, "folder that `main.py prepare` wrote")
    data_config: str = flag("", "JSON list of {name, lines, weight}: the datasets to draw from; empty: "
                                "DATA_DIR/data_config.json")
    mixture: Literal["example", "dataset"] = flag(
        "example", "example: each example of a batch is drawn from the weighted datasets. dataset: each batch is drawn "
        "from one dataset", fixed=True)
    views: Views = flag(
        "given", "which texts of an example are encoded. given: its own texts; identical: the first text, twice (they "
        "differ by dropout); word_dropout, crop: the first text, changed twice at random; single: the first text, once",
        fixed=True)
    view_rate: float = flag(0.1, "share of the word pieces that word_dropout or crop leaves out", minimum=0, below=1,
                            fixed=True)
    hard_negatives: bool = flag(
        True, "use the negatives of triplets; false: use their first two texts only", fixed=True)
    verify: Literal["checksum", "size"] = flag(
        "checksum", "how shards are checked when they are opened; checksum reads all of them once")
    loader_threads: int = flag(2, "threads that read and pack batches", minimum=1)
    prefetch: int = flag(4, "batches that each host prepares in advance", minimum=1)


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    global_batch_size: int = flag(1024, "examples per step, over all devices", minimum=1, fixed=True)
    max_length: int = flag(
        128, "tokens per text, special tokens included; longer texts are truncated and counted", minimum=3, fixed=True)
    row_length: int = flag(
        0, "tokens per packed row; 0: the larger of 128 and max_length", minimum=3, or_zero=True, fixed=True)
    row_counts: int = flag(
        8, "largest number of sizes (in rows) that batches are rounded up to. They are chosen from the lengths of the "
        "first batches. Each is one program to compile, so a short run gets at most one per ten steps. Fewer sizes "
        "leave more of the rows empty", minimum=1, fixed=True)
    packing_blocks: int = flag(
        8, "independently packed blocks in a global batch; a multiple of the device count. Rows fill well from 64 "
        "examples per block on. Results depend on the number of blocks, not on the number of devices",
        minimum=1, fixed=True)
    encode_blocks: int = flag(
        0, "packing blocks that a device encodes at a time, for batches larger than its memory (gradient caching: the "
        "same gradient for a third more arithmetic); 0: all of them", minimum=0)
    remat: bool = flag(
        False, "recompute each layer in the backward pass: less memory for a third more arithmetic")
