"""From flags to a run: model, objective, data, optimizer, the last checkpoint if there is one."""

import dataclasses
import functools
import importlib.util
import json
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.loader import LoaderConfig, make_loader
from data.mixture import read_data_config
from data.shards import read_manifest
from data.tokenizer import TextTokenizer, load_tokenizer
from evaluation.embedding import unit_length
from model.config import DenseConfig, ModelConfig
from model.modules import retrieval_prompts
from model.parameters import Tree, declare, initialize
from model.weights import load_model, read_config_only
from sharding.mesh import check_divides, local_blocks, replicate
from training.checkpoint import Checkpointer, Progress, has_checkpoint
from training.config import DistillConfig, TrainConfig
from training.distillation import mse_objective
from training.evaluators import Evaluation, make_evaluator
from training.feed import Feed
from training.losses import contrastive_objective
from training.objective import Objective, add_objectives
from training.optimizer import learning_rate_schedule, make_optimizer
from training.reporter import Reporter
from training.sct import QueueOptions, sct_objective, teacher_objective
from training.step import TrainState, initial_state, make_loss_and_gradient, make_train_step, state_shardings
from training.teacher import Teacher, fit_projection, set_up_teacher


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    mesh: jax.sharding.Mesh
    model: ModelConfig
    tokenizer: TextTokenizer
    tokenizer_folder: pathlib.Path
    loader: object  # Grain iterator of Batch
    teacher: Teacher | None
    train_step: Callable[[int], Callable]  # texts an example -> compiled step
    evaluator: Callable[..., Evaluation]
    checkpoints: Checkpointer
    reporter: Reporter
    patience_steps: float  # without a better score until the run stops; infinite: never

    @property
    def workdir(self) -> pathlib.Path:
        return pathlib.Path(self.config.workdir)

    def teacher_targets(self, state: TrainState) -> Callable[[list[str]], np.ndarray] | None:
        """texts -> what the mean squared error asks the student to give for them [n, d]."""
        if self.teacher is None:
            return None
        projection = state.memory.get("projection")

        def targets(texts: list[str]) -> np.ndarray:
            embeddings = self.teacher.encode(texts)
            if self.config.normalize_teacher:
                embeddings = unit_length(embeddings)
            return embeddings if projection is None else embeddings @ np.asarray(projection.addressable_data(0))

        return targets


def check_flags(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError on flags that do not fit each other, the devices or what is installed."""
    check_divides(config.packing_blocks, "packing_blocks", mesh.size, "the number of devices")
    if config.encode_blocks:
        check_divides(config.packing_blocks // mesh.size, "packing blocks of a device", config.encode_blocks,
                      "encode_blocks")
    check_divides(config.global_batch_size, "global_batch_size", config.packing_blocks, "packing_blocks")
    if config.views == "single" and config.objective != "mse":
        raise ValueError(f"--views=single gives one text an example, --objective={config.objective} compares two")
    check_extra(config.plot, "--plot", "matplotlib", "plot")
    check_extra(config.tensorboard, "--tensorboard", "tensorboardX", "tensorboard")


def check_extra(wanted: bool, flag_name: str, package: str, extra: str) -> None:
    """Fails at the start, not after hours, where a flag needs a package that is not installed."""
    if wanted and importlib.util.find_spec(package) is None:
        raise ValueError(f"{flag_name} needs {package}: pip install -e '.[{extra}]'")


def starting_point(config: TrainConfig):
    """(model, float32 parameters, tokenizer folder) that --init and the flags ask for."""
    if config.random_init:
        model, tokenizer_folder = read_config_only(config.init)
        parameters = initialize(declare(model), jax.random.key(config.seed))
    else:
        model, parameters, tokenizer_folder, _ = load_model(config.init)
    if config.keep_layers:
        model, parameters = keep_layers(model, parameters, config.keep_layers)
    if config.dense:
        head = DenseConfig(model.embedding_size, config.dense, bias=True, activation="tanh")
        model = dataclasses.replace(model, dense=(*model.dense, head))
        name = f"dense_{len(model.dense) - 1}"
        parameters = parameters | initialize({name: declare(model)[name]}, jax.random.key(config.seed))
    model = dataclasses.replace(
        model, pooling=config.pooling or model.pooling, normalize=config.normalize, max_length=config.encode_length
    )
    if config.max_length > model.encoder.max_positions:
        raise ValueError(f"max_length={config.max_length} is above the position table's {model.encoder.max_positions}")
    return model, parameters, tokenizer_folder


def keep_layers(model: ModelConfig, parameters: Tree, kept: tuple[str, ...]) -> tuple[ModelConfig, Tree]:
    """The model with some of its layers alone, in the order given."""
    count = model.encoder.num_layers
    if not all(number.isdecimal() and int(number) < count for number in kept):
        raise ValueError(f"--keep_layers={','.join(kept)}: --init has the layers 0 to {count - 1}")
    rows = np.array([int(number) for number in kept])
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, num_layers=len(rows)))
    return model, parameters | {"layers": {name: leaf[rows] for name, leaf in parameters["layers"].items()}}


def with_run_lengths(config: TrainConfig, num_examples: int) -> TrainConfig:
    """num_steps and warmup_steps as --num_epochs and --warmup_share ask for."""
    num_steps, warmup_steps = config.num_steps, config.warmup_steps
    if config.num_epochs:
        num_steps = math.ceil(config.num_epochs * num_examples / config.global_batch_size)
    if config.warmup_share:
        warmup_steps = round(config.warmup_share * num_steps)
    return dataclasses.replace(config, num_steps=num_steps, warmup_steps=warmup_steps)


def data_weights(config: TrainConfig) -> dict[str, int]:
    return read_data_config(config.data_config or pathlib.Path(config.data_dir, "data_config.json"))


def set_up(config: TrainConfig, mesh) -> tuple[Run, TrainState, Progress]:
    """Loads model, data and the last checkpoint, if there is one."""
    workdir = pathlib.Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    model, parameters, tokenizer_folder = starting_point(config)
    tokenizer = load_tokenizer(tokenizer_folder)
    datasets, manifest = data_weights(config), read_manifest(config.data_dir)
    model = dataclasses.replace(model, prompts=tuple(manifest.get("prompts", {}).items()))  # its data's, not --init's
    num_examples = sum(entry["examples"] for entry in manifest["datasets"] if entry["name"] in datasets)
    config = with_run_lengths(config, num_examples)
    teacher = set_up_teacher(config, mesh, tokenizer, datasets) if isinstance(config, DistillConfig) else None
    loader = iter(make_loader(
        loader_config(config, teacher), local_blocks(mesh, config.packing_blocks),
        tokenizer_fingerprint=tokenizer.fingerprint,
    ))
    first_batch = loader.get_state()
    evaluator = make_evaluator(config, retrieval_prompts(model))
    schedule = learning_rate_schedule(config.schedule, config.learning_rate, config.warmup_steps, config.num_steps)
    optimizer = make_optimizer(
        schedule, b1=config.adam_b1, b2=config.adam_b2, epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay, clip_norm=config.clip_norm, bias_correction=config.adam_bias_correction,
    )
    checkpoint_dir = config.checkpoint_dir or workdir / "checkpoints"
    resumes, projection = has_checkpoint(checkpoint_dir), None
    if getattr(config, "teacher_pca", 0):
        # A checkpoint has the axes; only their shape is needed then.
        projection = np.zeros((teacher.width, config.teacher_pca), np.float32) if resumes else fit_projection(
            config, teacher, Feed(loader, mesh, config.row_rungs), num_examples, mesh)
    objective = make_objective(config, model, teacher, projection)
    parameters = parameters | initialize(objective.parameters, jax.random.key(config.seed))
    state = jax.jit(
        functools.partial(initial_state, optimizer=optimizer, objective=objective),
        out_shardings=state_shardings(objective, mesh),
    )(replicate(parameters, mesh))
    progress = Progress(loader_state=first_batch, best_score=None, best_step=None)
    # Last, as the threads of its manager print a traceback where Python ends just after they started.
    checkpoints = Checkpointer(checkpoint_dir, identity(config, model, tokenizer, teacher), config.keep_checkpoints)
    try:
        if resumes:
            state, progress = checkpoints.restore(state)
        loader.set_state(progress.loader_state)
        reporter = Reporter(config, checkpoints.latest_step())
    except Exception:
        checkpoints.close()
        raise

    @functools.cache
    def train_step(texts_per_example: int):
        loss_and_gradient = make_loss_and_gradient(
            model, mesh, objective, texts_per_example=texts_per_example,
            dropout_seed=config.seed if config.dropout else None, dtype=jnp.dtype(config.dtype), remat=config.remat,
            attention_implementation=config.attention, encode_blocks=config.encode_blocks,
        )
        return make_train_step(loss_and_gradient, optimizer, schedule, mesh, objective)

    patience = config.patience_epochs * num_examples / config.global_batch_size or math.inf
    run = Run(config, mesh, model, tokenizer, tokenizer_folder, loader, teacher, train_step, evaluator, checkpoints,
              reporter, patience)
    return run, state, progress


def loader_config(config: TrainConfig, teacher: Teacher | None) -> LoaderConfig:
    values = dataclasses.asdict(config) | {"teacher": teacher.fingerprint if teacher and teacher.stored else ""}
    return LoaderConfig(**{field.name: values[field.name] for field in dataclasses.fields(LoaderConfig)})


def make_objective(
    config: TrainConfig, model: ModelConfig, teacher: Teacher | None, projection: np.ndarray | None
) -> Objective:
    """What --objective names. Raises ValueError where student, teacher and flags do not fit."""
    dtype, width, batch_size = jnp.dtype(config.dtype), model.embedding_size, config.global_batch_size
    queue = QueueOptions(
        config.queue_size, int(config.num_queues), config.reference_temperature, config.temperature, config.kl_weight,
        dtype, config.loss_implementation, config.seed,
    )

    def sct() -> Objective:
        return sct_objective(width, batch_size, queue, head=config.sct_head, reference=config.reference,
                             momentum=config.reference_momentum)

    if config.objective == "contrastive":
        return contrastive_objective(
            model, scale=config.scale, learn_scale=config.learn_scale, symmetric=config.symmetric,
            key_exchange=config.key_exchange, dtype=dtype, implementation=config.loss_implementation,
        )
    if config.objective == "sct":
        return sct()
    if config.objective == "mse":
        return mse_objective(width, teacher.width, normalize_teacher=config.normalize_teacher, projection=projection)
    distilled = teacher_objective(width, teacher.width, batch_size, queue, views_of_one_text=config.views != "given")
    return add_objectives(sct(), distilled) if config.objective == "sct_cd" else distilled


def identity(config: TrainConfig, model: ModelConfig, tokenizer: TextTokenizer, teacher: Teacher | None) -> dict:
    """What must not change between the parts of a run; everything else (rates, intervals) may."""
    names = ("seed", "mixture", "hard_negatives", "global_batch_size", "packing_blocks", "max_length", "row_length",
             "row_rungs", "views", "view_rate", "objective", "learn_scale", "queue_size", "num_queues", "sct_head",
             "reference")
    values = {name: getattr(config, name) for name in names} | {
        "model": dataclasses.asdict(model), "tokenizer": tokenizer.fingerprint,
        "data": read_manifest(config.data_dir)["datasets"], "weights": data_weights(config),
    }
    if prompts := values["model"].pop("prompts"):  # only where given: older checkpoints know of none
        values["prompts"] = prompts
    if teacher is not None:
        values |= {"teacher": teacher.fingerprint, "teacher_pca": config.teacher_pca}
    return json.loads(json.dumps(values))
