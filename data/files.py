"""Files and folders that appear whole or not at all, and snapshots from the Hugging Face hub. Used by every room."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

WRITTEN = ".allpairs-files.json"  # the files of a folder that may be replaced


@contextlib.contextmanager
def new_folder(target: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `target` and renames it to `target` if the block succeeds, else removes it.

    With `replace` a former folder is replaced, but not what only the user can have put there: files that no earlier
    call with `replace` wrote are moved into the new folder, unless it has others of their names. WRITTEN lists what was
    written. A kill between the two renames can leave the old folder under a temporary name, but never a mixture. A link
    is followed.

    Raises ValueError if `target` is a file, or has files and `replace` is not set.
    """
    target = Path(target).resolve()
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
        if replace:
            write_json(written / WRITTEN, sorted([*_files_below(written), WRITTEN]))
            for name in foreign_files(target):
                if (written / name).exists():
                    continue
                (written / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).rename(written / name)
        if target.is_dir():
            target.rename(temporary / "old")
        written.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_files(source: Path, target: Path) -> None:
    """Copies what a folder holds, links followed, but not the permissions: the umask decides them."""
    for place, _, names in os.walk(source, followlinks=True):
        folder = target / Path(place).relative_to(source)
        folder.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(Path(place, name), folder / name)


def check_replaceable(folder: Path) -> None:
    """Raises ValueError if new_folder(folder, replace=True) would find a file, or files that it did not write."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a folder is written there: move it away")
    if files := foreign_files(folder):
        named = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        raise ValueError(f"{folder} holds files that were not written by a run ({named}): move them away, or choose "
                         "another folder")


def foreign_files(folder: Path) -> list[str]:
    """The files below a folder, as relative paths, that new_folder(folder, replace=True) did not write."""
    if not folder.is_dir():
        return []
    ours = read_json(folder / WRITTEN) if (folder / WRITTEN).exists() else []
    return sorted(set(_files_below(folder)) - set(ours))


def _files_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]


@contextlib.contextmanager
def new_file(target: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a temporary file beside `target`; flushes it to the disk and renames it to `target` if the block succeeds.

    If the block fails, the temporary file is removed and `target` stays as it was. The umask decides the permissions.
    """
    target = Path(target).absolute()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        set_default_permissions(temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def set_default_permissions(path: str | os.PathLike) -> None:
    """Gives a file that a library made for its owner only the permissions that open() would: 0666 less the umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError naming the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with new_file(path) as file:
        file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def model_folder(folder: Path) -> Path:
    """The folder itself, or its export/ if it is the WORKDIR of a training run and so no model.

    Raises ValueError for a run that has exported nothing yet.
    """
    if any((folder / name).exists() for name in ("allpairs.json", "modules.json", "config.json")):
        return folder
    if (folder / "export" / "modules.json").exists():
        return folder / "export"
    if any((folder / name).exists() for name in ("checkpoints", "metrics.jsonl", "lock")):
        raise ValueError(f"{folder} is a training run without an export yet: a run writes export/ when it is scored, "
                         "or at its end if no scores are asked for. Its `main.py train` command continues it")
    return folder


def hub_snapshot(name: str, allow_patterns: list[str], ignore_patterns: list[str] | None = None) -> Path:
    """The local snapshot of a hub id, with the files that match; downloaded if the hub's cache does not have it.

    Raises ValueError with the hub's answer.
    """
    from huggingface_hub import snapshot_download  # only a hub id needs it

    try:
        return Path(snapshot_download(name, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
    except Exception as error:  # of the hub's many errors each means the same here
        answer = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise ValueError(f"there is no folder {name}, and as a hub id: {answer}") from error


def file_state(path: Path) -> dict[str, int]:
    """Size and modification time of a file; one that keeps both is taken to be unchanged."""
    state = path.stat()
    return {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


@contextlib.contextmanager
def write_errors_named(output: Path) -> Iterator[None]:
    """Says what to do about a full disk or a folder that cannot be written; for work that the same command resumes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        raise OSError(f"cannot write in {output}: {error}. Make room or choose another --output; the same command goes "
                      "on with what is finished") from error
