"""Every setting of a training run. Defaults are those of all-MiniLM-L6-v2 (SYSTEMS.md section 1)."""

import dataclasses
from typing import Literal

from flags import REQUIRED, flag
from training.losses import KeyExchange
from training.objective import Reference
from training.optimizer import Schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    # Where things are.
    data_dir: str = flag(REQUIRED, "folder that `prepare` wrote")
    workdir: str = flag(REQUIRED, "folder of this run: checkpoints, metrics, export. The same command resumes it")
    data_config: str = flag("", "JSON list of {name, lines, weight}; empty: DATA_DIR/data_config.json")
    checkpoint_dir: str = flag("", "where checkpoints go, a bucket path too; empty: WORKDIR/checkpoints")

    # Model.
    init: str = flag(REQUIRED, "MODEL that training starts from: a folder or a hub id")
    random_init: bool = flag(False, "take --init's architecture and tokenizer, but random weights")
    pooling: Literal["", "mean", "cls", "max", "pooler"] = flag("", "pooling of tokens; empty: as --init says, or mean")
    normalize: bool = flag(True, "scale embeddings to unit length")
    encode_length: int = flag(256, "tokens of a text that the exported model reads, special tokens included")
    dropout: bool = flag(True, "drop out as the model's configuration says; false: no dropout")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of activations and matrix products")
    attention: Literal["auto", "xla", "tpu"] = flag("auto", "form of attention: plain XLA or a Pallas kernel for TPUs")
    remat: bool = flag(False, "recompute each layer in the backward pass: less memory, a third more arithmetic")

    keep_layers: tuple[str, ...] = flag((), "numbers, from 0, of the layers of --init to start from: "
                                            "1,3,5 makes a student of every second of six; empty: all")
    dense: int = flag(0, "width of a new Dense + Tanh head after --init's own; 0: none")

    # Batch.
    global_batch_size: int = flag(1024, "examples a step, over all devices")
    max_length: int = flag(128, "tokens of a text, special tokens included; longer texts are truncated and counted")
    row_length: int = flag(0, "tokens of a packed row; 0: the larger of 128 and max_length")
    row_rungs: int = flag(16, "a batch's number of rows is rounded up to one of so many sizes a doubling (a power of "
                              "two): fewer sizes, fewer programs to compile and emptier rows")
    packing_blocks: int = flag(8, "parts that the global batch is packed in, a multiple of the devices; packs well "
                                  "from 64 examples a part on. Results depend on it, and not on the devices")
    encode_blocks: int = flag(0, "packing blocks that a device encodes at a time, for batches beyond its memory "
                                 "(gradient caching: the same gradient, a third more arithmetic); 0: all")
    mixture: Literal["example", "dataset"] = flag("example", "what is drawn from one dataset: an example or a batch")
    views: Literal["given", "identical", "word_dropout", "crop", "single"] = flag(
        "given", "what is encoded of an example (data/views.py). given: its own texts; identical: the first, twice "
        "(they differ by dropout); word_dropout, crop: the first, changed twice; single: the first, once")
    view_rate: float = flag(0.1, "share of the tokens that word_dropout or crop leaves out")
    hard_negatives: bool = flag(True, "use the negatives of triplets; false: their first two texts only")
    verify: Literal["checksum", "size"] = flag("checksum", "how shards are checked on opening; checksum reads them all")
    loader_threads: int = flag(2, "threads that read and pack batches")
    prefetch: int = flag(4, "batches that a host prepares ahead")

    # Loss.
    objective: Literal["contrastive", "sct"] = flag(
        "contrastive", "contrastive: in-batch negatives (training/losses.py). sct: self-supervised cross-view training "
        "with queues (training/sct.py)")
    scale: float = flag(20.0, "logits are scale * cosine (20 = temperature 0.05)")
    learn_scale: bool = flag(False, "train the scale too, from --scale on")
    symmetric: Literal["auto", "always", "never"] = flag(
        "auto", "also classify queries by key; auto: in batches without hard negatives")
    loss_implementation: Literal["auto", "reference", "xla", "tpu", "hopper"] = flag(
        "auto", "form of the similarity kernel")
    key_exchange: KeyExchange = flag(
        "all_gather", "how devices compare with the keys of all. all_gather holds them all, in few large messages: the "
        "faster one while they fit. ring and bidirectional_ring pass them on, in memory that does not grow with the "
        "devices; at best the sending hides behind the arithmetic, from some thousand examples a device on "
        "(kernels/contrastive/ring.py), bidirectional from half as many. The loss is the same")

    queue_size: int = flag(65536, "sct, cd: rows of a queue, a multiple of global_batch_size; 0: the batch alone")
    num_queues: Literal["1", "2"] = flag("2", "sct, cd: a queue for each view, or the first view's for both")
    reference_temperature: float = flag(0.04, "sct, cd: tau_ref, of the references' similarities")
    temperature: float = flag(0.05, "sct, cd: tau, of the student's similarities")
    kl_weight: float = flag(1.0, "sct, cd: weight of each divergence: 1 in the published code, 0.5 in the paper")
    sct_head: bool = flag(True, "sct: the three-block head of the student in training")
    reference: Reference = flag("own", "sct: what encodes the references: the encoder itself, or a momentum copy of it")
    reference_momentum: float = flag(0.999, "sct: share of the momentum copy that a step keeps")

    # Optimizer.
    num_steps: int = flag(100_000, "steps of the whole run")
    num_epochs: float = flag(0.0, "instead of num_steps: passes over as many examples as the data has; 0: num_steps")
    learning_rate: float = flag(2e-5, "peak learning rate")
    schedule: Schedule = flag("linear", "decay after the warm-up")
    warmup_steps: int = flag(500, "steps of linear warm-up")
    warmup_share: float = flag(0.0, "instead of warmup_steps: a share of all steps; 0: warmup_steps")
    adam_b1: float = flag(0.9, "decay of AdamW's first moment")
    adam_b2: float = flag(0.999, "decay of AdamW's second moment")
    adam_epsilon: float = flag(1e-6, "AdamW's epsilon")
    adam_bias_correction: bool = flag(True, "false: AdamW's moments are taken as they are, as SCT does")
    weight_decay: float = flag(0.0, "decoupled decay of all but biases and norms")
    clip_norm: float = flag(1.0, "largest global gradient norm; 0: no clipping")
    seed: int = flag(0, "seed of data order, dropout and random weights")

    # Evaluation, checkpoints, logs.
    eval_sts: str = flag("", "STS file (sentence1, sentence2, score, split): Spearman is logged and selects the export")
    eval_split: str = flag("dev", "split of --eval_sts")
    eval_pairs: str = flag("", "held-out pairs (.jsonl.gz): accuracy@1 and MRR@10 among all of them are logged")
    select: str = flag("", "score that selects the export; empty: the first there is of sts_spearman, heldout_mrr@10, "
                           "translation_accuracy, teacher_mse")
    patience_epochs: float = flag(0.0, "stop after so many epochs without a better selected score; 0: never")
    eval_every: int = flag(1000, "steps between evaluations")
    checkpoint_every: int = flag(1000, "steps between checkpoints")
    keep_checkpoints: int = flag(2, "latest checkpoints kept")
    log_every: int = flag(10, "steps between lines of metrics.jsonl")
    tensorboard: bool = flag(False, "also write WORKDIR/tensorboard (the tensorboard extra)")
    profile_steps: tuple[str, ...] = flag((), "first,last: a profile of these steps is written to WORKDIR/profile")
    plot: bool = flag(False, "draw WORKDIR/curves.png at the end (the plot extra)")

    # Several processes.
    coordinator_address: str = flag("", "host:port of process 0, or auto on a pod; empty: one process")
    num_processes: int = flag(1, "processes of the run, with an explicit --coordinator_address")
    process_id: int = flag(0, "number of this process, likewise")


@dataclasses.dataclass(frozen=True)
class DistillConfig(TrainConfig):
    teacher: str = flag(REQUIRED, "MODEL of the frozen teacher: a folder or a hub id")
    teacher_pooling: Literal["", "mean", "cls", "max", "pooler"] = flag(
        "", "pooling of the teacher's tokens; empty: as --teacher says, or mean")
    teacher_embeddings: Literal["auto", "stored", "computed"] = flag(
        "auto", "stored: what `main.py teach` wrote beside the data. computed: by the teacher in each step, which must "
        "have the student's tokenizer. auto: stored where they are there")
    objective: Literal["mse", "cd", "sct_cd"] = flag(
        "mse", "mse: all texts of an example come near the teacher's embedding of its first (distillation.py). "
        "cd: its two views, through queues of the teacher's embeddings. sct_cd: that and sct (training/sct.py)")
    normalize_teacher: bool = flag(True, "mse: scale the teacher's embeddings to unit length, before any projection")
    teacher_pca: int = flag(0, "mse: principal axes that the teacher's embeddings are projected on; 0: no projection")
    pca_sample: int = flag(40_000, "embeddings that the principal axes are fitted on")
    eval_teacher: str = flag("", "held-out texts, one a line: teacher_mse, the mean squared error x 100, is logged")
    eval_parallel: str = flag("", "held-out translations (.tsv with a header of languages): accuracy and mean squared "
                                  "error x 100 are logged for each language")
