"""Every setting of a training run, in groups. Defaults are those of all-MiniLM-L6-v2 (recipes/README.md)."""

import dataclasses
from typing import Literal

from data.settings import BatchSettings, DataSettings
from flags import REQUIRED, flag
from sharding.layout import ShardState
from training.objectives.contrastive import KeyExchange
from training.objectives.objective import Reference

Pooling = Literal["", "mean", "cls", "max", "pooler"]
TAUGHT = ("mse", "cd", "sct_cd")  # objectives that need a teacher


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    init: str = flag(REQUIRED, "MODEL that training starts from: a folder or a hub id")
    random_init: bool = flag(False, "take --init's architecture and tokenizer, but random weights")
    pooling: Pooling = flag("", "how token embeddings become one embedding; empty: as --init says, else mean")
    normalize: bool = flag(True, "scale embeddings to unit length")
    encode_length: int = flag(
        256, "tokens per text that the exported model reads, special tokens included; at most what the position table "
        "holds", minimum=3)
    keep_layers: tuple[int, ...] = flag(
        (), "layers of --init to start from, counted from 0: 1,3,5 keeps every second of six layers; empty: all",
        minimum=0)
    dense: int = flag(0, "width of a new Dense + Tanh head after --init's own heads; 0: no new head", minimum=0)
    dropout: bool = flag(True, "apply the dropout rates of the model's configuration; false: no dropout")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "dtype of activations and matrix products")
    attention: Literal["auto", "xla", "tpu"] = flag(
        "auto", "implementation of attention: plain XLA or a Pallas kernel for TPUs; auto takes the kernel on TPUs")


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    objective: Literal["contrastive", "sct", "mse", "cd", "sct_cd"] = flag(
        "contrastive", "contrastive: in-batch negatives (objectives/contrastive.py). sct: self-supervised cross-view "
        "training with queues (objectives/sct.py). With a teacher: mse: every text of an example learns the "
        "teacher's embedding of the first text (objectives/mse.py). cd: two views of a text are compared with queues "
        "of the teacher's embeddings. sct_cd: the sum of sct and cd", fixed=True)
    scale: float = flag(20.0, "contrastive: logits are scale * cosine (20 is temperature 0.05)", above=0)
    learn_scale: bool = flag(False, "contrastive: train the scale too, starting from --scale", fixed=True)
    symmetric: Literal["auto", "always", "never"] = flag(
        "auto", "contrastive: also find the query of each positive (the mean of both losses); auto: only in batches "
        "without hard negatives")
    loss_implementation: Literal["auto", "reference", "xla", "tpu", "hopper"] = flag(
        "auto", "implementation of the similarity kernel; auto chooses by device, a named one fails if it cannot run")
    queue_size: int = flag(
        65536, "sct, cd: embeddings of earlier batches in a queue, a multiple of global_batch_size; 0: none", minimum=0,
        fixed=True)
    num_queues: Literal["1", "2"] = flag("2", "sct, cd: 2: one queue per view; 1: the first view's queue for both",
                                         fixed=True)
    reference_temperature: float = flag(
        0.04, "sct, cd: tau_ref, the temperature of the references' similarities", above=0)
    temperature: float = flag(0.05, "sct, cd: tau, the temperature of the student's similarities", above=0)
    kl_weight: float = flag(
        1.0, "sct, cd: weight of each divergence: 1 in the published code, 0.5 in the paper", above=0)
    sct_head: bool = flag(True, "sct: train with the three-block head on top of the student", fixed=True)
    reference: Reference = flag(
        "own", "sct: the encoder that makes the references: the one in training, or a momentum copy of it", fixed=True)
    reference_momentum: float = flag(
        0.999, "sct: share of itself that the momentum copy keeps per step", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    teacher: str = flag("", "MODEL of the frozen teacher: a folder or a hub id; empty: no teacher")
    teacher_pooling: Pooling = flag("", "pooling of the teacher's tokens; empty: as --teacher says, else mean")
    teacher_embeddings: Literal["auto", "stored", "computed"] = flag(
        "auto", "stored: read what `main.py teach` wrote beside the data. computed: the teacher embeds each batch, "
        "which needs a teacher with the student's tokenizer. auto: stored if they are there, else computed")
    normalize_teacher: bool = flag(
        True, "mse: scale the teacher's embeddings to unit length, before any projection")
    teacher_pca: int = flag(
        0, "mse: number of principal axes that the teacher's embeddings are projected on; 0: no projection", minimum=0,
        fixed=True)
    pca_sample: int = flag(40_000, "mse: embeddings that the principal axes are fitted on", minimum=1)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    num_steps: int = flag(100_000, "steps of the whole run", minimum=1)
    num_epochs: float = flag(
        0.0, "length of the run in passes over the number of examples, instead of num_steps; 0: num_steps is used",
        minimum=0)
    learning_rate: float = flag(2e-5, "peak learning rate", above=0)
    schedule: Literal["linear", "cosine", "constant"] = flag("linear", "how the learning rate falls after the warm-up")
    warmup_steps: int = flag(500, "steps of linear warm-up; 0: none", minimum=0)
    warmup_share: float = flag(
        0.0, "warm-up as a share of all steps, instead of warmup_steps; 0: warmup_steps is used", minimum=0, below=1)
    adam_b1: float = flag(0.9, "decay of AdamW's first moment", minimum=0, below=1)
    adam_b2: float = flag(0.999, "decay of AdamW's second moment", minimum=0, below=1)
    adam_epsilon: float = flag(1e-6, "AdamW's epsilon", above=0)
    adam_bias_correction: bool = flag(True, "correct the bias of AdamW's moments; false: no correction, as in SCT")
    weight_decay: float = flag(0.0, "decoupled weight decay of all parameters except biases and norms", minimum=0)
    clip_norm: float = flag(1.0, "largest global gradient norm; 0: no clipping", minimum=0)


@dataclasses.dataclass(frozen=True)
class ShardingSettings:
    key_exchange: KeyExchange = flag(
        "all_gather", "how each device sees the other devices' keys. all_gather: every device holds all of them; the "
        "fastest while they fit. ring, bidirectional_ring: they are passed from device to device, in memory that does "
        "not grow with the number of devices; worth it from some thousand examples per device on. The loss is the "
        "same (kernels/contrastive/ring.py)")
    shard_state: ShardState = flag(
        "none", "what the devices of a replica share instead of each holding all of it. none: nothing. optimizer: the "
        "moments of AdamW (ZeRO-1); no more is sent than without. parameters: the parameters too, gathered layer by "
        "layer, for encoders that one device cannot hold. Results are the same (sharding/layout.py)")
    shard_devices: int = flag(
        0, "devices of a replica, neighbours on the chip grid; a divisor of the number of devices; 0: all of them",
        minimum=0)
    coordinator_address: str = flag("", "host:port of process 0, or auto on a pod; empty: one process")
    num_processes: int = flag(1, "number of processes, with an explicit --coordinator_address", minimum=1)
    process_id: int = flag(0, "number of this process, from 0, with an explicit --coordinator_address", minimum=0)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    eval_every: int = flag(
        1000, "steps between evaluations; 0: only before the first and after the last step", minimum=0)
    eval_sts: str = flag("", "STS file (sentence1, sentence2, score, split); its Spearman correlation is logged")
    eval_split: str = flag("dev", "split of --eval_sts")
    eval_pairs: str = flag(
        "", "held-out pairs (.jsonl.gz); accuracy@1 and MRR@10 of finding each positive among all are logged")
    eval_teacher: str = flag(
        "", "held-out texts, one per line; teacher_mse, the mean squared error x 100 to the teacher, is logged")
    eval_parallel: str = flag(
        "", "held-out translations (.tsv with a header of languages); translation accuracy and, with a teacher, mean "
        "squared error x 100 are logged per language")
    select: str = flag("", "score that selects the exported model; empty: the first of these that is measured: "
                           "sts_spearman, heldout_mrr@10, translation_accuracy, teacher_mse")
    patience_epochs: float = flag(
        0.0, "stop after this many epochs without a better selected score; 0: never stop early", minimum=0)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    workdir: str = flag(REQUIRED, "folder of this run: checkpoints, metrics, export. The same command resumes the run")
    seed: int = flag(0, "seed of data order, dropout and random weights", minimum=0, fixed=True)
    checkpoint_dir: str = flag("", "folder or bucket of the checkpoints; empty: WORKDIR/checkpoints")
    checkpoint_every: int = flag(1000, "steps between checkpoints; 0: only after the last step", minimum=0)
    keep_checkpoints: int = flag(2, "number of latest checkpoints that are kept", minimum=1)
    log_every: int = flag(10, "steps between lines of metrics.jsonl; 0: only after the last step", minimum=0)
    tensorboard: bool = flag(False, "also write WORKDIR/tensorboard (needs the tensorboard extra)")
    profile_steps: tuple[int, ...] = flag(
        (), "first,last: write a profile of these steps to WORKDIR/profile", minimum=1, count=2)
    plot: bool = flag(False, "draw WORKDIR/curves.png at the end (needs the plot extra)")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    batch: BatchSettings = BatchSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    teacher: TeacherSettings = TeacherSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    sharding: ShardingSettings = ShardingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings = RunSettings()


@dataclasses.dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """The same settings with another default objective; a teacher is required."""

    objective: ObjectiveSettings = ObjectiveSettings(objective="mse")
    teacher: TeacherSettings = TeacherSettings(teacher=REQUIRED)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after `step`; 0: never."""
    return every > 0 and step % every == 0
