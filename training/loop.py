"""Train a sentence encoder: on prepared pairs and triplets, with the in-batch negatives of all devices, or without.

A run is its flags: the same command resumes it from its last checkpoint, bit for bit. What decides where the weights
come from, in this order: a checkpoint of the run, then --init.
"""

import sys

import jax

from data.shards import read_manifest
from flags import values_of
from inference.encoder import Encoder
from model.files.export import ModelCard, export_sentence_transformers
from model.parameters import declare
from sharding.mesh import host_copy, initialize_processes, make_mesh
from training.checkpoint import Progress
from training.evaluators import gains, save_details
from training.feed import Feed
from training.plot import plot_curves
from training.preemption import Preemption
from training.settings import TrainConfig, is_due
from training.setup import Run, check_flags, set_up
from training.step import TrainState


def train(config: TrainConfig) -> int:
    """Runs until --num_steps or SIGTERM. Raises ValueError on settings that do not fit, before any work."""
    sharding = config.sharding
    initialize_processes(sharding.coordinator_address, sharding.num_processes, sharding.process_id)
    mesh = make_mesh()
    check_flags(config, mesh)
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


def run_steps(run: Run, state: TrainState, progress: Progress, preemption: Preemption) -> tuple[bool, Progress]:
    """The training loop. Returns whether all steps are done (False: stopped by SIGTERM, and saved) and the progress."""
    config, reporter, step = run.config, run.reporter, int(jax.device_get(state.step))
    if step == 0:
        with reporter.paused():
            progress = evaluate(run, state, step, progress)
    is_last = is_last_step(run, step, progress)
    pending = None  # the step before, whose metrics are read once the next one is under way
    for fed in () if is_last else Feed(run.loader, run.mesh, config.batch.row_rungs):
        profile(run, state, step + 1)
        with jax.transfer_guard("disallow"):
            batch = fed.batch if run.teacher is None else fed.batch._replace(targets=run.teacher.of_batch(fed))
            state, metrics = run.train_step(fed.host.texts_per_example)(state, batch)
        step += 1
        if pending:
            reporter.step_done(*pending)
        pending = (step, fed, metrics)
        progress = progress._replace(loader_state=fed.loader_state)

        stop = preemption.reached(step)
        evaluates = step == config.optimizer.num_steps or is_due(step, config.evaluation.eval_every)
        if evaluates:
            reporter.step_done(*pending)  # no evaluation, no checkpoint of a step that went wrong
            pending = None
            with reporter.paused():
                progress = evaluate(run, state, step, progress)
        is_last = is_last_step(run, step, progress)
        if is_last or stop or is_due(step, config.run.checkpoint_every):
            if pending:
                reporter.step_done(*pending)
                pending = None
            with reporter.paused():
                run.checkpoints.save(step, state, progress)
        if is_last or stop:
            break
    return is_last, progress


def is_last_step(run: Run, step: int, progress: Progress) -> bool:
    """Whether the run ends after `step`: at --num_steps, or when --patience_epochs brought no better score."""
    waited = step - progress.best_step if progress.best_step is not None else 0
    return step >= run.config.optimizer.num_steps or waited >= run.patience_steps


def profile(run: Run, state: TrainState, next_step: int) -> None:
    """Starts the trace before the first of --profile_steps, stops it after the last."""
    if run.config.run.profile_steps:
        first, last = run.config.run.profile_steps
        if next_step == first:
            jax.profiler.start_trace(str(run.workdir / "profile"))
        elif next_step == last + 1:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()


def evaluate(run: Run, state: TrainState, step: int, progress: Progress) -> Progress:
    """Scores the model; exports it if it is the best so far, or the last of a run that scores nothing.

    Every process computes the same scores on its own devices, so that none has to be told; process 0 writes.
    """
    parameters = {name: state.parameters[name] for name in declare(run.model)}  # without those of the objective
    encoder = Encoder.from_parameters(
        run.model, jax.tree.map(lambda x: x.addressable_data(0), parameters), run.tokenizer)
    evaluation = run.evaluator(encoder.encode, run.teacher_targets(state))
    score = evaluation.selected
    is_best = score is not None and (progress.best_score is None or score > progress.best_score)
    if is_best:
        progress = progress._replace(best_score=score, best_step=step)
    if jax.process_index() > 0:
        return progress
    if evaluation.scores:
        run.reporter.evaluated(step, evaluation.scores)
        save_details(run.workdir, step, evaluation)
    if is_best or (score is None and step == run.config.optimizer.num_steps):
        export_sentence_transformers(
            run.workdir / "export", run.model, host_copy(parameters), run.tokenizer_folder,
            model_card(run, step, evaluation.scores), replace=True,
        )
    return progress


def summarize(run: Run, progress: Progress) -> None:
    """What the run has gained over its first weights, and where its results are."""
    if progress.best_step:
        print("\n".join(gains(run.workdir, 0, progress.best_step)))
    if run.config.run.plot:
        print(f"curves: {plot_curves(run.workdir)}")
    print(f"model: {run.workdir / 'export'}")


def model_card(run: Run, step: int, scores: dict[str, float]) -> ModelCard:
    config, manifest = run.config, read_manifest(run.config.data.data_dir)
    places = ("data_dir", "workdir", "checkpoint_dir", "coordinator_address", "num_processes", "process_id")
    recipe = [(name, value) for name, value in values_of(config).items() if name not in places and value != ()]
    return ModelCard(
        name=run.workdir.resolve().name,
        base_model="" if config.model.random_init else config.model.init,
        datasets=tuple((entry["name"], entry["examples"]) for entry in manifest["datasets"]),
        recipe=tuple((name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in recipe),
        scores=tuple((f"held out, after step {step}", name, value) for name, value in scores.items()),
    )
