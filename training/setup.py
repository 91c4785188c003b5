"""From flags to a run: model, objective, data, optimizer, the last checkpoint if there is one."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.loader import LoaderConfig, make_loader
from data.tokenizer import TextTokenizer, load_tokenizer
from flags import settings_of
from inference.embedding import unit_length
from model.config import ModelConfig
from model.files.modules import retrieval_prompts
from model.parameters import initialize
from sharding.layout import Layout, host_copy, local_blocks, place, ring_order, shardings
from training.checkpoint import Checkpointer, Progress, check_identity, has_checkpoint
from training.checks import TrainingData
from training.evaluators import Evaluation, make_evaluator
from training.feed import Feed
from training.objectives.contrastive import contrastive_objective
from training.objectives.mse import mse_objective
from training.objectives.objective import Objective, add_objectives
from training.objectives.sct import QueueOptions, sct_objective, teacher_objective
from training.optimizer import learning_rate_schedule, make_optimizer
from training.reporter import Reporter
from training.settings import TrainConfig
from training.starting_point import starting_model, starting_point
from training.step import TrainState, initial_state, make_loss_and_gradient, make_train_step, state_specs
from training.teacher import Teacher, fit_projection, set_up_teacher


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    layout: Layout
    data: TrainingData
    model: ModelConfig
    tokenizer: TextTokenizer
    tokenizer_folder: pathlib.Path
    loader: object  # Grain iterator of Batch
    teacher: Teacher | None
    train_step: Callable[[int], Callable]  # texts per example -> compiled step
    evaluator: Callable[..., Evaluation]
    checkpoints: Checkpointer
    reporter: Reporter
    patience_steps: float  # the run stops after so many without a better score; infinity: never

    @property
    def workdir(self) -> pathlib.Path:
        return pathlib.Path(self.config.run.workdir)

    def teacher_targets(self, state: TrainState) -> Callable[[list[str]], np.ndarray] | None:
        """texts -> the embeddings [n, D] that the mean squared error compares with the student's."""
        if self.teacher is None:
            return None
        projection = state.memory.get("projection")

        def targets(texts: list[str]) -> np.ndarray:
            embeddings = self.teacher.encode(texts)
            if self.config.teacher.normalize_teacher:
                embeddings = unit_length(embeddings)
            return embeddings if projection is None else embeddings @ host_copy(projection)

        return targets


def set_up(config: TrainConfig, layout: Layout, data: TrainingData) -> tuple[Run, TrainState, Progress]:
    """Loads model, data and the last checkpoint, if there is one. num_steps and warmup_steps must be settled."""
    workdir, seed, mesh = pathlib.Path(config.run.workdir), config.run.seed, layout.mesh
    model, tokenizer_folder = starting_model(config.model, data.prompts)
    tokenizer = load_tokenizer(tokenizer_folder)
    checkpoint_dir = config.run.checkpoint_dir or workdir / "checkpoints"
    same_in_all_parts, resumes = identity(config, data, model, tokenizer), has_checkpoint(checkpoint_dir)
    if resumes:
        check_identity(checkpoint_dir, same_in_all_parts)
    model, parameters = starting_point(config.model, model, seed)
    evaluator = make_evaluator(config.evaluation, retrieval_prompts(model), has_teacher=bool(config.teacher.teacher))
    teacher = set_up_teacher(config, layout, tokenizer, data.weights) if config.teacher.teacher else None
    loader = iter(make_loader(
        LoaderConfig(config.data, config.batch, seed, config.optimizer.num_steps,
                     teacher.fingerprint if teacher and teacher.stored else ""),
        local_blocks(mesh, config.batch.packing_blocks), tokenizer_fingerprint=tokenizer.fingerprint,
    ))
    first_batch = loader.get_state()
    schedule = learning_rate_schedule(config.optimizer)
    optimizer = make_optimizer(config.optimizer, schedule)
    projection, axes = None, config.teacher.teacher_pca
    if axes:  # a checkpoint holds the axes: only their shape is needed then
        projection = np.zeros((teacher.width, axes), np.float32) if resumes else fit_projection(
            config, teacher, Feed(loader, mesh), data.num_examples, mesh)
    objective = make_objective(config, model, teacher, projection, ring_order(mesh))
    parameters = parameters | initialize(objective.parameters, jax.random.key(seed))
    specs = state_specs(model, objective, optimizer, layout)
    state = jax.jit(
        functools.partial(initial_state, optimizer=optimizer, objective=objective),
        out_shardings=shardings(specs, mesh),
    )(place(parameters, specs.parameters, mesh))
    progress = Progress(loader_state=first_batch, best_score=None, best_step=None)
    # Created last: the threads of its manager print a traceback if Python ends just after they started.
    same_in_all_parts |= {"pooler": model.encoder.pooler, "teacher": teacher.fingerprint if teacher else ""}
    checkpoints = Checkpointer(checkpoint_dir, same_in_all_parts, config.run.keep_checkpoints)
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
            model, layout, objective, texts_per_example=texts_per_example,
            dropout_seed=seed if config.model.dropout else None, dtype=jnp.dtype(config.model.dtype),
            remat=config.batch.remat, attention_implementation=config.model.attention,
            encode_blocks=config.batch.encode_blocks,
        )
        return make_train_step(model, layout, objective, loss_and_gradient, optimizer, schedule)

    patience = config.evaluation.patience_epochs * data.num_examples / config.batch.global_batch_size or math.inf
    run = Run(config, layout, data, model, tokenizer, tokenizer_folder, loader, teacher, train_step, evaluator,
              checkpoints, reporter, patience)
    return run, state, progress


def make_objective(
    config: TrainConfig, model: ModelConfig, teacher: Teacher | None, projection: np.ndarray | None,
    ring: tuple[int, ...] | None,
) -> Objective:
    """The objective that --objective names. Raises ValueError if student, teacher and flags do not fit."""
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
            ring=ring,
        )
    if settings.objective == "sct":
        return sct()
    if settings.objective == "mse":
        return mse_objective(width, teacher.width, normalize_teacher=config.teacher.normalize_teacher,
                             projection=projection)
    distilled = teacher_objective(
        width, teacher.width, batch_size, queue, views_of_one_text=config.data.views != "given")
    return add_objectives(sct(), distilled) if settings.objective == "sct_cd" else distilled


def identity(config: TrainConfig, data: TrainingData, model: ModelConfig, tokenizer: TextTokenizer) -> dict:
    """What must stay the same when a run is resumed and is known before weights are loaded.

    Everything else may change: rates, intervals, layout. A checkpoint also has the teacher's fingerprint and `pooler`.
    """
    architecture = dataclasses.asdict(model)
    del architecture["encoder"]["pooler"]  # only the weights say whether there is one
    values = {setting.name: setting.default for setting in settings_of(config) if setting.fixed} | {
        "model": architecture, "tokenizer": tokenizer.fingerprint, "data": data.manifests, "weights": data.weights,
    }
    return json.loads(json.dumps(values))
