"""Train a sentence encoder on prepared data: contrastive, self-supervised (SCT) or with a teacher.

The same command resumes a run from its last checkpoint, bit for bit. If there is no checkpoint, training starts from
the weights of --init.
"""

import contextlib
import pathlib
import sys

import jax

from flags import values_of
from inference.encoder import Encoder
from model.files.export import ModelCard, export_sentence_transformers
from model.parameters import declare
from sharding.layout import host_copy, make_layout
from sharding.processes import any_process, initialize_processes, keep_compiled_programs
from training.checkpoint import Progress
from training.checks import check_devices, check_flags, check_workdir, read_training_data, with_run_lengths
from training.evaluators import gains, save_details, scores_at
from training.feed import Feed
from training.lock import only_run
from training.plot import plot_curves
from training.preemption import Preemption
from training.settings import TrainConfig, is_due
from training.setup import Run, set_up
from training.starting_point import check_longest_text
from training.step import TrainState

PLACES = ("data_dir", "workdir", "checkpoint_dir", "coordinator_address", "num_processes", "process_id")


def train(config: TrainConfig) -> int:
    """Runs until --num_steps, SIGTERM or Ctrl-C. Settings that do not fit are refused before anything is written."""
    sharding, workdir = config.sharding, pathlib.Path(config.run.workdir)
    check_flags(config)
    check_workdir(workdir)
    data = read_training_data(config)
    config = with_run_lengths(config, data.num_examples)
    check_longest_text(config.model.init, config.batch.max_length)
    initialize_processes(sharding.coordinator_address, sharding.num_processes, sharding.process_id)
    layout = make_layout(sharding.shard_state, sharding.shard_devices)
    check_devices(config, layout.mesh)
    with only_run(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        keep_compiled_programs(workdir / "compiled")
        run, state, progress = set_up(config, layout, data)
        try:
            with Preemption() as preemption:
                finished, state, progress = run_steps(run, state, progress, preemption)
            if finished:
                export_if_missing(run, state, progress)
        finally:
            run.reporter.close()
            run.checkpoints.close()
    if not finished:
        print(f"stopped by {preemption.stopped_by or 'SIGTERM'}; the last step is saved: the same command resumes",
              file=sys.stderr)
    elif jax.process_index() == 0:
        summarize(run, progress)
    return 0


def run_steps(
    run: Run, state: TrainState, progress: Progress, preemption: Preemption
) -> tuple[bool, TrainState, Progress]:
    """The training loop. Returns whether the run is finished (False: stopped, and saved), state and progress."""
    config, reporter, step = run.config, run.reporter, int(jax.device_get(state.step))
    if step == 0:
        with reporter.paused("evaluating"):
            progress = evaluate(run, state, step, progress)
    is_last = is_last_step(run, step, progress)
    pending = None  # the step before, whose metrics are read once the next one is under way
    for fed in () if is_last else Feed(run.loader, run.layout.mesh):
        profile(run, state, step + 1)
        train_step = run.train_step(fed.host.texts_per_example)
        with reporter.first_call(fed), jax.transfer_guard("disallow"):
            batch = fed.batch if run.teacher is None else fed.batch._replace(targets=run.teacher.of_batch(fed))
            state, metrics = train_step(state, batch)
        step += 1
        if pending:
            reporter.step_done(*pending)
        pending = (step, fed, metrics)
        progress = progress._replace(loader_state=fed.loader_state)

        stop = preemption.reached(step)
        if step == config.optimizer.num_steps or is_due(step, config.evaluation.eval_every):
            reporter.step_done(*pending)  # raises if the step went wrong, before it is evaluated or saved
            pending = None
            with reporter.paused("evaluating"):
                progress = evaluate(run, state, step, progress)
        is_last = is_last_step(run, step, progress)
        if is_last or stop or is_due(step, config.run.checkpoint_every):
            if pending:
                reporter.step_done(*pending)
                pending = None
            with reporter.paused("saving"):
                run.checkpoints.save(step, state, progress)
        if is_last or stop:
            break
    return is_last, state, progress


def is_last_step(run: Run, step: int, progress: Progress) -> bool:
    """Whether the run ends after `step`: at --num_steps, or after --patience_epochs without a better score."""
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

    The processes encode together, each on its own devices, and compute the same scores from it; process 0 writes.
    """
    parameters = {name: state.parameters[name] for name in declare(run.model)}  # without those of the objective
    encoder = Encoder(run.model, parameters, run.tokenizer, layout=run.layout)
    evaluation = run.evaluator(encoder.encode, run.teacher_targets(state))
    score = evaluation.selected
    is_best = score is not None and (progress.best_score is None or score > progress.best_score)
    if is_best:
        progress = progress._replace(best_score=score, best_step=step)
    if evaluation.scores and jax.process_index() == 0:
        run.reporter.evaluated(step, evaluation.scores)
        save_details(run.workdir, step, evaluation)
    if is_best or (score is None and step == run.config.optimizer.num_steps):
        export(run, state, step, evaluation.scores)
    return progress


def export(run: Run, state: TrainState, step: int, scores: dict[str, float]) -> None:
    """Process 0 writes WORKDIR/export; all take part, as split parameters are gathered for it."""
    parameters = host_copy({name: state.parameters[name] for name in declare(run.model)})
    if jax.process_index() > 0:
        return
    export_sentence_transformers(
        run.workdir / "export", run.model, parameters, run.tokenizer_folder, model_card(run, step, scores),
        replace=True,
    )


def export_if_missing(run: Run, state: TrainState, progress: Progress) -> None:
    """Exports again if WORKDIR/export of a finished run was deleted: the best step if its checkpoint is kept."""
    if not any_process(jax.process_index() == 0 and not (run.workdir / "export" / "modules.json").exists()):
        return
    step = int(jax.device_get(state.step))
    if progress.best_step not in (None, step):
        if progress.best_step in run.checkpoints.steps():
            step, state = progress.best_step, run.checkpoints.restore_state(progress.best_step, state)
        else:
            print(f"the best model, of step {progress.best_step}, is lost: its export and its checkpoint were deleted. "
                  f"Step {step} is exported instead", file=sys.stderr)
    export(run, state, step, scores_at(run.workdir, step))


def summarize(run: Run, progress: Progress) -> None:
    """Prints the gain over the initial weights, and where the results are."""
    if progress.best_step:
        print("\n".join(gains(run.workdir, 0, progress.best_step)))
    if run.config.run.plot:
        print(f"curves: {plot_curves(run.workdir)}")
    print(f"model: {run.workdir / 'export'}")


def model_card(run: Run, step: int, scores: dict[str, float]) -> ModelCard:
    """What the exported README.md says about the run."""
    recipe = [(name, value) for name, value in values_of(run.config).items() if name not in PLACES and value != ()]
    return ModelCard(
        name=run.workdir.resolve().name,
        base_model="" if run.config.model.random_init else run.config.model.init,
        datasets=tuple((entry["name"], entry["examples"]) for entry in run.data.manifests),
        recipe=tuple((name, as_flag(value)) for name, value in recipe),
        scores=tuple((f"held out, after step {step}", name, value) for name, value in scores.items()),
    )


def as_flag(value: object) -> str:
    """A setting's value as a command line has it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
