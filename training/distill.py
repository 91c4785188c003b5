"""Train a sentence encoder to reproduce a frozen teacher's embeddings; takes the flags of train.

    python main.py distill --flagfile=recipes/R.flags --teacher=MODEL --data_dir=DIR --workdir=DIR

The targets are the teacher's embeddings, or their principal components (--teacher_pca). They are read from beside the
data if `python main.py teach` has written them there. Else the teacher embeds each batch, which requires a teacher with
the student's tokenizer.
"""

from training.loop import train
from training.settings import DistillConfig


def distill(config: DistillConfig) -> int:
    """As train."""
    return train(config)
