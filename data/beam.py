"""prepare on Apache Beam: one element is one file.

    main.py prepare ... --runner=DirectRunner -- --direct_num_workers=8 --direct_running_mode=multi_processing
    main.py prepare ... --runner=FlinkRunner -- --flink_master=HOST:8081 --environment_type=PROCESS ...
    main.py prepare ... --runner=DataflowRunner -- --project=P --region=R --sdk_container_image=IMAGE ...

Every worker must see --source_dir and --data_dir under the same paths (a shared file system that is mounted on all of
them), have this repository on its PYTHONPATH, and the packages of pyproject.toml: on a cluster, in its container image.
A runner may try a file twice, even at once. Each attempt writes a folder of its own, and the first that is whole stays.

A bad file does not get better if it is tried again, so it does not fail its worker. Its error is left in
DATA_DIR/<name>.error, from where the command reports and removes it.
"""

import functools
import glob
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.files import new_file
from data.tokenizer import TextTokenizer, load_tokenizer
from data.units import Unit, finished_manifest, write_unit
from data.writer import Block, TokenisedBlock, tokenise_block
from flags import Error

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

REPOSITORY = Path(__file__).resolve().parent.parent


def beam_options(runner: str, flags: Sequence[str]) -> "PipelineOptions":
    """Beam's options. Raises flags.Error if apache_beam is not installed, or for an unknown runner or flag."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise Error(f"--runner={runner} needs Apache Beam ({error}): pip install '.[beam]'") from None
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise Error(f"--runner={runner}: {error}") from None
    options = PipelineOptions([f"--runner={runner}", *flags])
    known = options.get_all_options(drop_default=True)
    unknown = sorted(set(options.get_all_options(drop_default=True, retain_unknown_options=True)) - set(known))
    if unknown and runner == "DirectRunner":  # on a cluster they may be flags of its job server
        raise Error(f"{' '.join(flags)}: Beam's {runner} has no flag --{', --'.join(unknown)}")
    return options


def write_with_beam(units: Sequence[Unit], runner: str, options: "PipelineOptions") -> None:
    """Writes the files by a pipeline on that runner.

    Raises ValueError for bad files, and OSError with the runner's reason if it gave up.
    """
    import apache_beam

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    for unit in units:
        _clear(unit)
    units = [unit._replace(path=unit.path.absolute(), data_dir=unit.data_dir.absolute()) for unit in units]
    try:
        with apache_beam.Pipeline(options=options) as pipeline:
            files = pipeline | "files" >> apache_beam.Create(units, reshuffle=True)
            files | "prepare" >> apache_beam.Map(prepare_file)
    except Exception as error:  # of the runners' many errors each means the same here
        reason = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise OSError(f"--runner={runner} gave up; finished files stay: {reason[-1].strip()}") from error
    finally:
        errors = [error for unit in units for error in _clear(unit)]
    if errors:
        raise ValueError("; ".join(errors))


def prepare_file(unit: Unit) -> str:
    """Prepares one file in a worker; returns its name."""
    attempt = f".attempt-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    tokenizer = _tokenizer(str(unit.data_dir / "tokenizer"))

    def tokenise(blocks: Iterator[Block]) -> Iterator[tuple[Block, TokenisedBlock]]:
        return ((block, tokenise_block(block, tokenizer)) for block in blocks)

    try:
        if finished_manifest(unit) is None:
            write_unit(unit, unit.source(), tokenise, attempt)
    except ValueError as error:
        with new_file(_error_file(unit)) as file:
            file.write(str(error).encode())
    except OSError:
        if finished_manifest(unit) is None:  # else another attempt was first
            raise
    return unit.name


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: str) -> TextTokenizer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    return load_tokenizer(folder)


def _error_file(unit: Unit) -> Path:
    return unit.data_dir / f"{unit.name}.error"


def _clear(unit: Unit) -> list[str]:
    """Removes what attempts left of a file; returns the error of one, if there is any."""
    folder, error_file = (unit.data_dir / unit.name).parent, _error_file(unit)
    for attempt in folder.glob(f"{glob.escape(Path(unit.name).name)}.attempt-*.partial"):
        shutil.rmtree(attempt, ignore_errors=True)
    errors = [error_file.read_text(encoding="utf-8")] if error_file.exists() else []
    error_file.unlink(missing_ok=True)
    return errors
