"""Model folders: finding one by path or hub id, and writing new ones so that they appear complete or not at all."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

OURS = "allpairs.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "*training_args*", "*checkpoint-*"]


def find_model(model: str | os.PathLike) -> Path:
    """The folder of MODEL: itself, or the local snapshot of a hub id, downloaded when it is not in the hub's cache.

    Raises ValueError when there is no such folder and the hub has no such model either.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{model} is a file: a model is a folder or a hub id")
    if not _HUB_ID.fullmatch(str(model)):
        raise ValueError(f"there is no folder {model}")
    from huggingface_hub import snapshot_download  # only a hub id needs it

    try:
        folder = Path(snapshot_download(str(model), allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED))
        if not any(folder.rglob("*.safetensors")):  # an old model, as PyTorch's pickle alone
            snapshot_download(str(model), allow_patterns=["*pytorch_model*"], ignore_patterns=_HUB_IGNORED)
    except Exception as error:  # of the hub's many errors each means the same here
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise ValueError(f"there is no folder {model}, and as a hub id: {reason}") from error
    return folder


@contextlib.contextmanager
def new_folder(target: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `target` and renames it to `target` if the block succeeds, else removes it.

    Raises ValueError if `target` is a file, or has files and `replace` is not set. With `replace`, a kill between the
    two renames can leave the old folder under a temporary name, but never a mixture.
    """
    target = Path(target).absolute()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: the output is a folder")
    if target.is_dir() and any(target.iterdir()) and not replace:
        raise ValueError(f"{target} is not empty: name a new folder or empty it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        written = temporary / "new"
        written.mkdir()
        yield written
        if target.is_dir():
            target.rename(temporary / "old")
        written.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(target: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a temporary file beside `target` and renames it to `target` if the block succeeds, else removes it."""
    target = Path(target).absolute()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError naming the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
