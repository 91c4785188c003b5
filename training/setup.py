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
from data.settings import DataSettings
from data.shards import read_manifest
from data.tokenizer import TextTokenizer, load_tokenizer
from flags import settings_of, with_values
from inference.embedding import unit_length
from model.config import DenseConfig, ModelConfig
from model.files.modules import retrieval_prompts
from model.files.weights import load_model, read_config_only
from model.parameters import Tree, declare, initialize
from sharding.mesh import check_divides, local_blocks, replicate
from training.checkpoint import Checkpointer, Progress, has_checkpoint
from training.evaluators import Evaluation, make_evaluator
from training.feed import Feed
from training.objectives.contrastive import contrastive_objective
from training.objectives.mse import mse_objective
from training.objectives.objective import Objective, add_objectives
from training.objectives.sct import QueueOptions, sct_objective, teacher_objective
from training.optimizer import learning_rate_schedule, make_optimizer
from training.reporter import Reporter
from training.settings import TAUGHT, ModelSettings, TrainConfig
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
        return pathlib.Path(self.config.run.workdir)

    def teacher_targets(self, state: TrainState) -> Callable[[list[str]], np.ndarray] | None:
        """texts -> what the mean squared error asks the student to give for them [n, d]."""
        if self.teacher is None:
            return None
        projection = state.memory.get("projection")

        def targets(texts: list[str]) -> np.ndarray:
            embeddings = self.teacher.encode(texts)
            if self.config.teacher.normalize_teacher:
                embeddings = unit_length(embeddings)
            return embeddings if projection is None else embeddings @ np.asarray(projection.addressable_data(0))

        return targets


def check_flags(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError on flags that do not fit each other, the devices or what is installed."""
    batch, objective = config.batch, config.objective.objective
    check_divides(batch.packing_blocks, "packing_blocks", mesh.size, "the number of devices")
    if batch.encode_blocks:
        check_divides(batch.packing_blocks // mesh.size, "packing blocks of a device", batch.encode_blocks,
                      "encode_blocks")
    check_divides(batch.global_batch_size, "global_batch_size", batch.packing_blocks, "packing_blocks")
    if config.data.views == "single" and objective != "mse":
        raise ValueError(f"--views=single gives one text an example, --objective={objective} compares two")
    if objective in TAUGHT and not config.teacher.teacher:
        raise ValueError(f"--objective={objective} learns from a teacher: give --teacher=MODEL")
    check_extra(config.run.plot, "--plot", "matplotlib", "plot")
    check_extra(config.run.tensorboard, "--tensorboard", "tensorboardX", "tensorboard")


def check_extra(wanted: bool, flag_name: str, package: str, extra: str) -> None:
    """Fails at the start, not after hours, where a flag needs a package that is not installed."""
    if wanted and importlib.util.find_spec(package) is None:
        raise ValueError(f"{flag_name} needs {package}: pip install -e '.[{extra}]'")


def starting_point(settings: ModelSettings, longest_text: int, seed: int):
    """(model, float32 parameters, tokenizer folder) that --init and the model's flags ask for.

    Raises ValueError if the position table is shorter than `longest_text`, the tokens of a text in training.
    """
    if settings.random_init:
        model, tokenizer_folder = read_config_only(settings.init)
        parameters = initialize(declare(model), jax.random.key(seed))
    else:
        model, parameters, tokenizer_folder, _ = load_model(settings.init)
    if settings.keep_layers:
        model, parameters = keep_layers(model, parameters, settings.keep_layers)
    if settings.dense:
        head = DenseConfig(model.embedding_size, settings.dense, bias=True, activation="tanh")
        model = dataclasses.replace(model, dense=(*model.dense, head))
        name = f"dense_{len(model.dense) - 1}"
        parameters = parameters | initialize({name: declare(model)[name]}, jax.random.key(seed))
    model = dataclasses.replace(model, pooling=settings.pooling or model.pooling, normalize=settings.normalize,
                                max_length=settings.encode_length)
    if longest_text > model.encoder.max_positions:
        raise ValueError(f"max_length={longest_text} is above the position table's {model.encoder.max_positions}")
    return model, parameters, tokenizer_folder


def keep_layers(model: ModelConfig, parameters: Tree, kept: tuple[int, ...]) -> tuple[ModelConfig, Tree]:
    """The model with only the layers that are kept, in the order given."""
    count = model.encoder.num_layers
    if max(kept) >= count:
        raise ValueError(f"--keep_layers={','.join(map(str, kept))}: --init has the layers 0 to {count - 1}")
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, num_layers=len(kept)))
    rows = np.array(kept)
    return model, parameters | {"layers": {name: leaf[rows] for name, leaf in parameters["layers"].items()}}


def with_run_lengths(config: TrainConfig, num_examples: int) -> TrainConfig:
    """num_steps and warmup_steps as --num_epochs and --warmup_share ask for."""
    num_steps, warmup_steps = config.optimizer.num_steps, config.optimizer.warmup_steps
    if config.optimizer.num_epochs:
        num_steps = math.ceil(config.optimizer.num_epochs * num_examples / config.batch.global_batch_size)
    if config.optimizer.warmup_share:
        warmup_steps = round(config.optimizer.warmup_share * num_steps)
    return with_values(config, num_steps=num_steps, warmup_steps=warmup_steps)


def data_weights(data: DataSettings) -> dict[str, int]:
    return read_data_config(data.data_config or pathlib.Path(data.data_dir, "data_config.json"))


def set_up(config: TrainConfig, mesh) -> tuple[Run, TrainState, Progress]:
    """Loads model, data and the last checkpoint, if there is one."""
    workdir, seed, data_dir = pathlib.Path(config.run.workdir), config.run.seed, config.data.data_dir
    workdir.mkdir(parents=True, exist_ok=True)
    model, parameters, tokenizer_folder = starting_point(config.model, config.batch.max_length, seed)
    tokenizer = load_tokenizer(tokenizer_folder)
    datasets, manifest = data_weights(config.data), read_manifest(data_dir)
    model = dataclasses.replace(model, prompts=tuple(manifest.get("prompts", {}).items()))  # its data's, not --init's
    num_examples = sum(entry["examples"] for entry in manifest["datasets"] if entry["name"] in datasets)
    config = with_run_lengths(config, num_examples)
    teacher = set_up_teacher(config, mesh, tokenizer, datasets) if config.teacher.teacher else None
    loader = iter(make_loader(
        LoaderConfig(config.data, config.batch, seed, teacher.fingerprint if teacher and teacher.stored else ""),
        local_blocks(mesh, config.batch.packing_blocks), tokenizer_fingerprint=tokenizer.fingerprint,
    ))
    first_batch = loader.get_state()
    evaluator = make_evaluator(config.evaluation, retrieval_prompts(model), has_teacher=teacher is not None)
    schedule = learning_rate_schedule(config.optimizer)
    optimizer = make_optimizer(config.optimizer, schedule)
    checkpoint_dir = config.run.checkpoint_dir or workdir / "checkpoints"
    resumes, projection, axes = has_checkpoint(checkpoint_dir), None, config.teacher.teacher_pca
    if axes:  # a checkpoint has them; only their shape is needed then
        projection = np.zeros((teacher.width, axes), np.float32) if resumes else fit_projection(
            config, teacher, Feed(loader, mesh, config.batch.row_rungs), num_examples, mesh)
    objective = make_objective(config, model, teacher, projection)
    parameters = parameters | initialize(objective.parameters, jax.random.key(seed))
    state = jax.jit(
        functools.partial(initial_state, optimizer=optimizer, objective=objective),
        out_shardings=state_shardings(objective, mesh),
    )(replicate(parameters, mesh))
    progress = Progress(loader_state=first_batch, best_score=None, best_step=None)
    # Last, as the threads of its manager print a traceback where Python ends just after they started.
    checkpoints = Checkpointer(
        checkpoint_dir, identity(config, model, tokenizer, teacher), config.run.keep_checkpoints)
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
            dropout_seed=seed if config.model.dropout else None, dtype=jnp.dtype(config.model.dtype),
            remat=config.batch.remat, attention_implementation=config.model.attention,
            encode_blocks=config.batch.encode_blocks,
        )
        return make_train_step(loss_and_gradient, optimizer, schedule, mesh, objective)

    patience = config.evaluation.patience_epochs * num_examples / config.batch.global_batch_size or math.inf
    run = Run(config, mesh, model, tokenizer, tokenizer_folder, loader, teacher, train_step, evaluator, checkpoints,
              reporter, patience)
    return run, state, progress


def make_objective(
    config: TrainConfig, model: ModelConfig, teacher: Teacher | None, projection: np.ndarray | None
) -> Objective:
    """What --objective names. Raises ValueError if student, teacher and flags do not fit."""
    settings, dtype, batch_size = config.objective, jnp.dtype(config.model.dtype), config.batch.global_batch_size
    width = model.embedding_size
    queue = QueueOptions(
        settings.queue_size, int(settings.num_queues), settings.reference_temperature, settings.temperature,
        settings.kl_weight, dtype, settings.loss_implementation, config.run.seed,
    )

    def sct() -> Objective:
        return sct_objective(width, batch_size, queue, head=settings.sct_head, reference=settings.reference,
                             momentum=settings.reference_momentum)

    if settings.objective == "contrastive":
        return contrastive_objective(
            model, scale=settings.scale, learn_scale=settings.learn_scale, symmetric=settings.symmetric,
            key_exchange=config.sharding.key_exchange, dtype=dtype, implementation=settings.loss_implementation,
        )
    if settings.objective == "sct":
        return sct()
    if settings.objective == "mse":
        return mse_objective(width, teacher.width, normalize_teacher=config.teacher.normalize_teacher,
                             projection=projection)
    distilled = teacher_objective(
        width, teacher.width, batch_size, queue, views_of_one_text=config.data.views != "given")
    return add_objectives(sct(), distilled) if settings.objective == "sct_cd" else distilled


def identity(config: TrainConfig, model: ModelConfig, tokenizer: TextTokenizer, teacher: Teacher | None) -> dict:
    """What must not change between the parts of a run; everything else (rates, intervals) may."""
    values = {setting.name: setting.default for setting in settings_of(config) if setting.fixed} | {
        "model": dataclasses.asdict(model), "tokenizer": tokenizer.fingerprint,
        "data": read_manifest(config.data.data_dir)["datasets"], "weights": data_weights(config.data),
        "teacher": teacher.fingerprint if teacher else "",
    }
    return json.loads(json.dumps(values))
