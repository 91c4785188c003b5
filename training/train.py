"""Train a sentence encoder on prepared pairs and triplets, with the in-batch negatives of all devices.

A run is its flags: the same command resumes it from its last checkpoint, bit for bit. What decides where the weights
come from, in this order: a checkpoint of the run, then --init.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from data.loader import LoaderConfig, make_loader
from data.mixture import read_data_config
from data.shards import read_manifest
from data.tokenizer import TextTokenizer, load_tokenizer
from model.config import ModelConfig
from model.export import ModelCard, export_sentence_transformers
from model.inference import Encoder
from model.parameters import declare, initialize
from model.weights import load_model, read_config_only
from sharding.mesh import check_divides, host_copy, initialize_processes, make_mesh, replicate
from training.checkpoint import Checkpointer, Progress
from training.config import TrainConfig
from training.evaluators import Evaluation, gains, make_evaluator, save_details
from training.feed import Feed
from training.optimizer import learning_rate_schedule, make_optimizer
from training.plot import plot_curves
from training.preemption import Preemption
from training.reporter import Reporter
from training.step import TrainState, initial_state, make_loss_and_gradient, make_train_step


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    mesh: jax.sharding.Mesh
    model: ModelConfig
    tokenizer: TextTokenizer
    tokenizer_folder: pathlib.Path
    loader: object  # Grain iterator of Batch
    train_step: Callable[[int], Callable]  # texts an example -> compiled step
    evaluator: Callable[[Callable], Evaluation]
    checkpoints: Checkpointer
    reporter: Reporter

    @property
    def workdir(self) -> pathlib.Path:
        return pathlib.Path(self.config.workdir)


def train(config: TrainConfig) -> int:
    """Runs until --num_steps or SIGTERM. Raises ValueError on settings that do not fit, before any work."""
    initialize_processes(config.coordinator_address, config.num_processes, config.process_id)
    mesh = make_mesh()
    check_divides(config.packing_blocks, "packing_blocks", mesh.size, "the number of devices")
    if config.encode_blocks:
        check_divides(config.packing_blocks // mesh.size, "packing blocks of a device", config.encode_blocks,
                      "encode_blocks")
    check_divides(config.global_batch_size, "global_batch_size", config.packing_blocks, "packing_blocks")
    check_extra(config.plot, "--plot", "matplotlib", "plot")
    check_extra(config.tensorboard, "--tensorboard", "tensorboardX", "tensorboard")
    run, state, progress = set_up(config, mesh)
    try:
        with Preemption() as preemption:
            finished, progress = run_steps(run, state, progress, preemption)
    finally:
        run.reporter.close()
        run.checkpoints.close()
    if not finished:
        print("stopped by SIGTERM; the last step is saved: the same command resumes", file=sys.stderr)
    elif jax.process_index() == 0:
        summarize(run, progress)
    return 0


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
    model = dataclasses.replace(
        model, pooling=config.pooling or model.pooling, normalize=config.normalize, max_length=config.encode_length
    )
    if config.max_length > model.encoder.max_positions:
        raise ValueError(f"max_length={config.max_length} is above the position table's {model.encoder.max_positions}")
    return model, parameters, tokenizer_folder


def set_up(config: TrainConfig, mesh) -> tuple[Run, TrainState, Progress]:
    """Loads model, data and the last checkpoint, if there is one."""
    workdir = pathlib.Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    model, parameters, tokenizer_folder = starting_point(config)
    tokenizer = load_tokenizer(tokenizer_folder)
    fields = [field.name for field in dataclasses.fields(LoaderConfig)]
    loader = iter(make_loader(
        LoaderConfig(**{name: getattr(config, name) for name in fields}), jax.process_index(), jax.process_count(),
        tokenizer_fingerprint=tokenizer.fingerprint,
    ))
    schedule = learning_rate_schedule(config.schedule, config.learning_rate, config.warmup_steps, config.num_steps)
    optimizer = make_optimizer(
        schedule, b1=config.adam_b1, b2=config.adam_b2, epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay, clip_norm=config.clip_norm,
    )
    state = jax.jit(
        functools.partial(initial_state, optimizer=optimizer), out_shardings=NamedSharding(mesh, PartitionSpec()),
    )(replicate(parameters, mesh))

    @functools.cache
    def train_step(texts_per_example: int):
        symmetric = {"auto": texts_per_example == 2, "always": True, "never": False}[config.symmetric]
        loss_and_gradient = make_loss_and_gradient(
            model, mesh, texts_per_example=texts_per_example, scale=config.scale, symmetric=symmetric,
            dropout_seed=config.seed if config.dropout else None, dtype=jnp.dtype(config.dtype), remat=config.remat,
            implementation=config.loss_implementation, attention_implementation=config.attention,
            encode_blocks=config.encode_blocks, key_exchange=config.key_exchange,
        )
        return make_train_step(loss_and_gradient, optimizer, schedule, mesh)

    evaluator = make_evaluator(config)
    checkpoints = Checkpointer(config.checkpoint_dir or workdir / "checkpoints", identity(config, model, tokenizer),
                               config.keep_checkpoints)
    progress = Progress(loader_state=None, best_score=None, best_step=None)
    try:
        if checkpoints.latest_step() is not None:
            state, progress = checkpoints.restore(state)
            loader.set_state(progress.loader_state)
        reporter = Reporter(config, checkpoints.latest_step())
    except Exception:
        checkpoints.close()  # its threads would go on, and print, while Python ends
        raise
    run = Run(config, mesh, model, tokenizer, tokenizer_folder, loader, train_step, evaluator, checkpoints, reporter)
    return run, state, progress


def identity(config: TrainConfig, model: ModelConfig, tokenizer: TextTokenizer) -> dict:
    """What must not change between the parts of a run; everything else (rates, intervals) may."""
    names = ("seed", "mixture", "hard_negatives", "global_batch_size", "packing_blocks", "max_length", "row_length",
             "row_rungs")
    values = {name: getattr(config, name) for name in names} | {
        "model": dataclasses.asdict(model), "tokenizer": tokenizer.fingerprint,
        "data": read_manifest(config.data_dir)["datasets"],
        "weights": read_data_config(config.data_config or pathlib.Path(config.data_dir, "data_config.json")),
    }
    return json.loads(json.dumps(values))


def run_steps(run: Run, state: TrainState, progress: Progress, preemption: Preemption) -> tuple[bool, Progress]:
    """The training loop. Returns whether all steps are done (False: stopped by SIGTERM, and saved) and the progress."""
    config, reporter, step = run.config, run.reporter, int(jax.device_get(state.step))
    if step == 0:
        with reporter.paused():
            progress = evaluate(run, state, step, progress)
    pending = None  # the step before, whose metrics are read once the next one is under way
    for fed in Feed(run.loader, run.mesh, run.config.row_rungs) if step < config.num_steps else ():
        profile(run, state, step + 1)
        with jax.transfer_guard("disallow"):
            state, metrics = run.train_step(fed.host.texts_per_example)(state, fed.packed)
        step += 1
        if pending:
            reporter.step_done(*pending)
        pending = (step, fed, metrics)
        progress = progress._replace(loader_state=fed.loader_state)

        last, stop = step == config.num_steps, preemption.reached(step)
        evaluates, saves = last or step % config.eval_every == 0, last or stop or step % config.checkpoint_every == 0
        if evaluates or saves:
            reporter.step_done(*pending)  # no checkpoint of a step that went wrong
            pending = None
            with reporter.paused():
                if evaluates:
                    progress = evaluate(run, state, step, progress)
                if saves:
                    run.checkpoints.save(step, state, progress)
        if last or stop:
            break
    return step >= config.num_steps, progress


def profile(run: Run, state: TrainState, next_step: int) -> None:
    """Starts the trace before the first of --profile_steps, stops it after the last."""
    if run.config.profile_steps:
        first, last = map(int, run.config.profile_steps)
        if next_step == first:
            jax.profiler.start_trace(str(run.workdir / "profile"))
        elif next_step == last + 1:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()


def evaluate(run: Run, state: TrainState, step: int, progress: Progress) -> Progress:
    """Scores the model; exports it if it is the best so far, or the last of a run that scores nothing.

    Every process computes the same scores on its own devices, so that none has to be told; process 0 writes.
    """
    encoder = Encoder.from_parameters(
        run.model, jax.tree.map(lambda x: x.addressable_data(0), state.parameters), run.tokenizer
    )
    evaluation = run.evaluator(encoder.encode)
    score = evaluation.selected
    is_best = score is not None and (progress.best_score is None or score > progress.best_score)
    if is_best:
        progress = progress._replace(best_score=score, best_step=step)
    if jax.process_index() > 0:
        return progress
    if evaluation.scores:
        run.reporter.evaluated(step, evaluation.scores)
        save_details(run.workdir, step, evaluation)
    if is_best or (score is None and step == run.config.num_steps):
        export_sentence_transformers(
            run.workdir / "export", run.model, host_copy(state.parameters), run.tokenizer_folder,
            model_card(run, step, evaluation.scores), replace=True,
        )
    return progress


def summarize(run: Run, progress: Progress) -> None:
    """What the run has gained over its first weights, and where its results are."""
    if progress.best_step:
        print("\n".join(gains(run.workdir, 0, progress.best_step)))
    if run.config.plot:
        print(f"curves: {plot_curves(run.workdir)}")
    print(f"model: {run.workdir / 'export'}")


def model_card(run: Run, step: int, scores: dict[str, float]) -> ModelCard:
    config, manifest = run.config, read_manifest(run.config.data_dir)
    places = ("data_dir", "workdir", "checkpoint_dir", "coordinator_address", "num_processes", "process_id")
    recipe = [(name, value) for name, value in dataclasses.asdict(config).items() if name not in places and value != ()]
    return ModelCard(
        name=run.workdir.resolve().name,
        base_model="" if config.random_init else config.init,
        datasets=tuple((entry["name"], entry["examples"]) for entry in manifest["datasets"]),
        recipe=tuple((name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in recipe),
        scores=tuple((f"held out, after step {step}", name, value) for name, value in scores.items()),
    )
