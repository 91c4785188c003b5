"""Checkpoints of a run (orbax): parameters, optimizer, step, loader state, best score, and what they belong to.

Written asynchronously and atomically to WORKDIR/checkpoints/<step>; a run killed while writing resumes from the one
before. Random numbers need no state of their own: they are functions of (seed, step), and both are here.
"""

import os
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from training.step import TrainState


class Progress(NamedTuple):
    """What a checkpoint holds beside the arrays, as JSON."""

    loader_state: Any
    best_score: float | None  # of the exported model
    best_step: int | None


def has_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether there is a finished checkpoint to resume from."""
    return _path(folder).exists() and any(child.name.isdecimal() for child in _path(folder).iterdir())


def check_identity(folder: str | os.PathLike, identity: dict) -> None:
    """Raises ValueError if the latest checkpoint is of another run, as far as these items of its identity say."""
    step = max(int(child.name) for child in _path(folder).iterdir() if child.name.isdecimal())
    saved = ocp.JsonCheckpointHandler().restore(_path(folder) / str(step) / "run")["identity"]
    _check_same({name: saved.get(name) for name in identity}, identity, f"{folder}/{step}")


def _check_same(saved: dict, current: dict, checkpoint: str) -> None:
    if differences := differing(saved, current):
        raise ValueError(f"the checkpoint {checkpoint} is of another run: {'; '.join(differences)}. Use another "
                         "--workdir, or the flags it was started with")


def _path(folder: str | os.PathLike) -> epath.Path:
    address = str(folder)
    return epath.Path(address if "://" in address else os.path.abspath(address))


class Checkpointer:
    """Saves and restores a run in `folder`, a path or a bucket's address.

    Args:
        identity: JSON dict of everything that must be equal for a resume to continue the same run: the model's
            configuration, the seed, the data. A checkpoint with another identity is refused.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict, keep: int):
        self._folder = _path(folder)
        self._identity = identity
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps whose checkpoints are kept."""
        return list(self._manager.all_steps())

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        if step == self._manager.latest_step():
            return
        self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            run=ocp.args.JsonSave({"identity": self._identity, "progress": progress._asdict()}),
        ))

    def restore(self, state: TrainState) -> tuple[TrainState, Progress]:
        """The latest checkpoint, placed as `state` is.

        Raises: ValueError that lists the differing settings if the checkpoint is of another model or run.
        """
        step = self._manager.latest_step()
        run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        _check_same(run["identity"], self._identity, f"{self._folder}/{step}")
        state = self.restore_state(step, state)
        logging.info("resumed from %s/%d", self._folder, step)
        return state, Progress(**run["progress"])

    def restore_state(self, step: int, state: TrainState) -> TrainState:
        """The arrays of one checkpoint, placed as those of `state` are."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def differing(saved: Any, current: Any, name: str = "") -> list[str]:
    """Leaves in which two JSON trees differ, as 'name: checkpoint has x, this run has y'."""
    if isinstance(saved, dict) and isinstance(current, dict):
        return [
            line for key in sorted(saved.keys() | current.keys())
            for line in differing(saved.get(key), current.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if saved == current else [f"{name}: the checkpoint has {saved!r}, this run has {current!r}"]
