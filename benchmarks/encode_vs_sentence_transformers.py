"""Texts a second of Encoder.encode beside SentenceTransformer.encode: same weights, texts and threads, float32.

    python -m benchmarks.encode_vs_sentence_transformers --data_dir=DIR [--peer_python=PYTHON]

Texts are the two sides of pairs drawn from real training files (benchmarks/texts.py). Each repetition runs ours and the
peer with each of --batch_sizes, one after another; the first, in which ours compiles, is not counted. The ratio is to
the fastest of the peer's batch sizes; that to its default of 32 is printed too.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks.peers.peer import (
    PeerBenchmarkConfig,
    describe_machine,
    paired_ratio,
    peer_model_folder,
    peer_python,
    peer_workers,
    print_result,
    run_benchmark,
    use_cpu,
)
from benchmarks.texts import SPEED_FILES, draw_pairs, mixed, read_training_pairs
from flags import flag

TARGET = 1.8
LARGEST_DIFFERENCE = 1e-5
DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own


@dataclasses.dataclass(frozen=True)
class EncodeBenchmarkConfig(PeerBenchmarkConfig):
    model: str = flag("", "folder of a sentence-transformers model; empty: the real all-MiniLM-L6-v2")
    texts: int = flag(2048, "texts encoded in each repetition, half queries, half positives", minimum=1)
    repeats: int = flag(5, "repetitions that count", minimum=1)
    batch_sizes: tuple[str, ...] = flag(("32", "64", "128"), "batch sizes of the peer; 32 is its default")


def benchmark(config: EncodeBenchmarkConfig) -> None:
    use_cpu(config.threads)
    from inference.encoder import Encoder  # imports JAX

    python = peer_python(config.peer_python)
    model = config.model or peer_model_folder(python)
    pairs = draw_pairs(read_training_pairs(config.data_dir, SPEED_FILES), config.texts // 2, config.seed)
    texts = list(dict.fromkeys(text for pair in mixed(pairs, config.seed) for text in pair))  # the peer encodes all
    batch_sizes = [int(size) for size in config.batch_sizes]
    encoder = Encoder.load(model)
    with tempfile.TemporaryDirectory() as temporary:
        texts_file, output = pathlib.Path(temporary, "texts.json"), pathlib.Path(temporary, "embeddings.npy")
        texts_file.write_text(json.dumps(texts))
        arguments = {"model": str(model), "texts": str(texts_file), "threads": config.threads}
        with peer_workers(python, "encode.py", {"peer": arguments}) as workers:
            peer = workers["peer"]
            print(f"{len(texts)} texts of {', '.join(SPEED_FILES)}, at most {peer.ready['max_length']} tokens each\n"
                  f"{describe_machine(config.threads, peer.ready['versions'])}")
            embeddings = encoder.encode(texts)
            peer.ask(batch_size=batch_sizes[0], output=str(output))
            difference = float(np.abs(embeddings - np.load(output)).max())
            ours, theirs = [], {size: [] for size in batch_sizes}
            for repeat in range(config.repeats):
                begin = time.perf_counter()
                encoder.encode(texts)
                ours.append(len(texts) / (time.perf_counter() - begin))
                for size in batch_sizes:
                    theirs[size].append(len(texts) / peer.ask(batch_size=size, output="")["seconds"])
                print(f"repetition {repeat + 1}: ours {ours[-1]:.1f} texts/s, peer "
                      + ", ".join(f"{rates[-1]:.1f} (batch {size})" for size, rates in theirs.items()), flush=True)
    report(ours, theirs, difference)


def report(ours: list[float], theirs: dict[int, list[float]], difference: float) -> None:
    for size, rates in theirs.items():
        ratio = paired_ratio(ours, rates)
        print(f"batch {size}: ours {ratio.ours:.1f}, peer {ratio.theirs:.1f} texts/s, ratio {ratio.ratio:.2f} "
              f"({ratio.lowest:.2f} to {ratio.highest:.2f})")
    print(f"largest difference of an embedding's coordinate: {difference:.1e}")
    fastest = max(theirs, key=lambda size: statistics.median(theirs[size]))
    best = paired_ratio(ours, theirs[fastest])
    print_result(
        "encode_vs_sentence_transformers", best.ratio, TARGET,
        best.ratio >= TARGET and difference <= LARGEST_DIFFERENCE,
        texts_per_second=round(best.ours, 1), peer_texts_per_second=round(best.theirs, 1), peer_batch_size=fastest,
        ratio_to_default=round(paired_ratio(ours, theirs[DEFAULT_BATCH_SIZE]).ratio, 3)
        if DEFAULT_BATCH_SIZE in theirs else None,
        largest_difference=difference,
    )


if __name__ == "__main__":
    run_benchmark(EncodeBenchmarkConfig, benchmark)
