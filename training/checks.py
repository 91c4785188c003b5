"""Checks before a run loads or writes anything: flags against each other, the workdir, the data and the devices."""

import importlib.util
import math
import pathlib
from typing import NamedTuple

import jax

from data.files import check_replaceable
from data.mixture import read_data_config
from data.shards import read_manifest
from flags import Error, with_values
from sharding.layout import check_divides
from training.metrics import read_metrics
from training.settings import TAUGHT, TrainConfig


class TrainingData(NamedTuple):
    """What the manifest and data_config say about the datasets that a run draws from."""

    weights: dict[str, int]  # of each dataset
    manifests: list[dict]  # the manifest's entries of these datasets
    prompts: dict[str, str]

    @property
    def num_examples(self) -> int:
        return sum(entry["examples"] for entry in self.manifests)


def check_flags(config: TrainConfig) -> None:
    """Raises flags.Error on flags that do not fit each other or what is installed; reads and makes nothing."""
    objective, steps = config.objective.objective, config.optimizer
    if config.data.views == "single" and objective != "mse":
        raise Error(f"--views=single gives one text per example, --objective={objective} compares two")
    if objective in TAUGHT and not config.teacher.teacher:
        raise Error(f"--objective={objective} learns from a teacher: give --teacher=MODEL")
    if not steps.num_epochs and not steps.warmup_share:
        _check_warmup(config)
    if config.run.profile_steps and config.run.profile_steps[0] > config.run.profile_steps[1]:
        first, last = config.run.profile_steps
        raise Error(f"--profile_steps={first},{last}: the first step is after the last")
    _check_extra(config.run.plot, "--plot", "matplotlib", "plot")
    _check_extra(config.run.tensorboard, "--tensorboard", "tensorboardX", "tensorboard")


def _check_warmup(config: TrainConfig) -> None:
    steps = config.optimizer
    if steps.warmup_steps >= steps.num_steps and steps.schedule != "constant":
        raise Error(f"warmup_steps={steps.warmup_steps} leaves nothing of num_steps={steps.num_steps} to decay over: "
                    "give a smaller --warmup_steps, --warmup_share=0.1 for one, or a larger --num_steps")


def _check_extra(wanted: bool, flag_name: str, package: str, extra: str) -> None:
    if wanted and importlib.util.find_spec(package) is None:
        raise Error(f"{flag_name} needs {package}: pip install -e '.[{extra}]'")


def check_workdir(workdir: pathlib.Path) -> None:
    """Raises ValueError if a run could not write in WORKDIR: export/ or metrics.jsonl were not written by a run."""
    check_replaceable(workdir / "export")
    read_metrics(workdir)


def read_training_data(config: TrainConfig) -> TrainingData:
    """Raises ValueError if DATA_DIR is no prepared folder, or the data_config names a dataset that it lacks.

    Raises flags.Error for hard negatives with an objective that has no use for them.
    """
    manifest = read_manifest(config.data.data_dir)
    weights = read_data_config(config.data.data_config or pathlib.Path(config.data.data_dir, "data_config.json"))
    entries = [entry for entry in manifest["datasets"] if entry["name"] in weights]
    with_negatives = [entry["name"] for entry in entries if entry["has_negatives"]]
    if with_negatives and config.objective.objective != "contrastive" and (
            config.data.hard_negatives and config.data.views == "given"):
        raise Error(f"--objective={config.objective.objective} takes no hard negatives, and {with_negatives[0]} in "
                    f"{config.data.data_dir} has some: give --hard_negatives=false, or a --data_config without it")
    return TrainingData(weights, entries, manifest["prompts"] if any(manifest["prompts"].values()) else {})


def with_run_lengths(config: TrainConfig, num_examples: int) -> TrainConfig:
    """The configuration with the num_steps and warmup_steps that --num_epochs and --warmup_share ask for.

    Raises flags.Error if nothing is left to decay over.
    """
    num_steps, warmup_steps = config.optimizer.num_steps, config.optimizer.warmup_steps
    if config.optimizer.num_epochs:
        num_steps = math.ceil(config.optimizer.num_epochs * num_examples / config.batch.global_batch_size)
    if config.optimizer.warmup_share:
        warmup_steps = int(config.optimizer.warmup_share * num_steps)
    config = with_values(config, num_steps=num_steps, warmup_steps=warmup_steps)
    _check_warmup(config)
    return config


def check_devices(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError if the devices do not divide the packing blocks, or these the batch."""
    batch = config.batch
    check_divides(batch.packing_blocks, "packing_blocks", mesh.size, "the number of devices")
    if batch.encode_blocks:
        check_divides(batch.packing_blocks // mesh.size, "packing blocks per device", batch.encode_blocks,
                      "encode_blocks")
    check_divides(batch.global_batch_size, "global_batch_size", batch.packing_blocks, "packing_blocks")
