"""Texts per second of Encoder.encode beside SentenceTransformer.encode: same weights, texts and threads, float32.

    python -m benchmarks.encode_vs_sentence_transformers --data_dir=DIR [--peer_python=PYTHON]

Texts are the two sides of pairs drawn from real training files (benchmarks/texts.py). Each repetition runs ours and the
peer with each of --batch_sizes, one after another; the first, in which ours compiles, is not counted. The ratio is to
the fastest of the peer's batch sizes; the ratio to its default of 32 is printed too. Each repetition also measures how
fast the machine multiplies matrices in float32 (benchmarks/machine.py). Target: a ratio of 1, 0.8 of that product rate,
and embeddings equal to the peer's within 1e-5.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks.harness import DataBenchmarkConfig, paired_ratio, print_result, run_benchmark
from benchmarks.machine import SHARE_TARGET, describe_machine, flops_of_texts, use_cpu
from benchmarks.peers.peer import peer_model_folder, peer_python, peer_workers, product_rates
from benchmarks.texts import SPEED_FILES, draw_pairs, mixed, read_training_pairs
from flags import flag

TARGET = 1.0
LARGEST_DIFFERENCE = 1e-5
DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own


@dataclasses.dataclass(frozen=True)
class EncodeBenchmarkConfig(DataBenchmarkConfig):
    model: str = flag("", "folder of a sentence-transformers model; empty: the real all-MiniLM-L6-v2")
    texts: int = flag(2048, "texts encoded in each repetition, half queries, half positives", minimum=2)
    repeats: int = flag(5, "repetitions that count", minimum=1)
    batch_sizes: tuple[int, ...] = flag((32, 64, 128), "batch sizes of the peer; 32 is its default", minimum=1)


def benchmark(config: EncodeBenchmarkConfig) -> None:
    use_cpu(config.threads)
    from inference.encoder import Encoder  # imports JAX

    python = peer_python(config.peer_python)
    model = config.model or peer_model_folder(python)
    pairs = draw_pairs(read_training_pairs(config.data_dir, SPEED_FILES), config.texts // 2, config.seed)
    texts = list(dict.fromkeys(text for pair in mixed(pairs, config.seed) for text in pair))  # the peer encodes all
    encoder = Encoder.load(model)
    flops_per_text = flops_of_texts(encoder.config.encoder, encoder.token_counts(texts)) / len(texts)
    with tempfile.TemporaryDirectory() as temporary:
        texts_file, output = pathlib.Path(temporary, "texts.json"), pathlib.Path(temporary, "embeddings.npy")
        texts_file.write_text(json.dumps(texts))
        arguments = {"model": str(model), "texts": str(texts_file), "threads": config.threads}
        with (peer_workers(python, "encode.py", {"peer": arguments}) as workers,
              product_rates(python, encoder.config.encoder, ["float32"], config.threads) as rates):
            peer, product_rate = workers["peer"], rates["float32"]
            print(f"{len(texts)} texts of {', '.join(SPEED_FILES)}, at most {peer.ready['max_length']} tokens each\n"
                  f"{describe_machine(config.threads, peer.ready['versions'])}")
            embeddings = encoder.encode(texts)
            peer.ask(batch_size=config.batch_sizes[0], output=str(output))
            difference = float(np.abs(embeddings - np.load(output)).max())
            ours, theirs, products = [], {size: [] for size in config.batch_sizes}, []
            for repeat in range(config.repeats):
                begin = time.perf_counter()
                encoder.encode(texts)
                ours.append(len(texts) / (time.perf_counter() - begin))
                for size in config.batch_sizes:
                    theirs[size].append(len(texts) / peer.ask(batch_size=size, output="")["seconds"])
                products.append(product_rate.measure() / flops_per_text)
                print(f"repetition {repeat + 1}: ours {ours[-1]:.1f} texts/s, peer "
                      + ", ".join(f"{rates[-1]:.1f} (batch {size})" for size, rates in theirs.items()), flush=True)
            print(product_rate)
    report(ours, theirs, products, difference)


def report(ours: list[float], theirs: dict[int, list[float]], products: list[float], difference: float) -> None:
    """Prints the result. All are texts per second for each repetition; `products` is the limit by the product rate."""
    share = paired_ratio(ours, products)
    for size, rates in theirs.items():
        ratio, peer_share = paired_ratio(ours, rates), paired_ratio(rates, products)
        print(f"batch {size}: ours {ratio.ours:.1f}, peer {ratio.theirs:.1f} texts/s, ratio {ratio}; "
              f"of the product rate, over real tokens: ours {share}, peer {peer_share}")
    print(f"largest difference of an embedding's coordinate: {difference:.1e}")
    fastest = max(theirs, key=lambda size: statistics.median(theirs[size]))
    best = paired_ratio(ours, theirs[fastest])
    print_result(
        "encode_vs_sentence_transformers", best.ratio, TARGET,
        best.ratio >= TARGET and share.ratio >= SHARE_TARGET and difference <= LARGEST_DIFFERENCE,
        texts_per_second=round(best.ours, 1), peer_texts_per_second=round(best.theirs, 1), peer_batch_size=fastest,
        ratio_to_default=round(paired_ratio(ours, theirs[DEFAULT_BATCH_SIZE]).ratio, 3)
        if DEFAULT_BATCH_SIZE in theirs else None,
        product_share=round(share.ratio, 3), product_share_target=SHARE_TARGET,
        peer_product_share=round(paired_ratio(theirs[fastest], products).ratio, 3), largest_difference=difference,
    )


if __name__ == "__main__":
    run_benchmark(EncodeBenchmarkConfig, benchmark)
