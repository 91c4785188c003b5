"""Train a sentence encoder to give a frozen teacher's embeddings, or their principal components (the flags of train).

    python main.py distill --flagfile=recipes/R.flags --teacher=MODEL --data_dir=DIR --workdir=DIR

The teacher's embeddings are read from beside the data, where `python main.py teach` has written them, or are computed
in each step, which takes a teacher with the student's tokenizer.
"""

from training.loop import train
from training.settings import DistillConfig


def distill(config: DistillConfig) -> int:
    """As train."""
    return train(config)
