"""Finding a model: a folder, or a hub id that is downloaded."""

import os
import re
from pathlib import Path

from data.files import hub_snapshot, model_folder

OURS = "allpairs.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "*training_args*", "*checkpoint-*"]


def find_model(model: str | os.PathLike) -> Path:
    """The folder of MODEL: itself, export/ of a training run, or the local snapshot of a hub id, downloaded if need be.

    Raises ValueError if there is no such folder and the hub has no such model either, and for a run without export/.
    """
    path = Path(model)
    if path.is_dir():
        return model_folder(path)
    if path.exists():
        raise ValueError(f"{model} is a file: a model is a folder or a hub id")
    if not _HUB_ID.fullmatch(str(model)):
        raise ValueError(f"there is no folder {model}")
    folder = hub_snapshot(str(model), _HUB_FILES, _HUB_IGNORED)
    if not any(folder.rglob("*.safetensors")):  # an old model, which has only PyTorch's pickle
        hub_snapshot(str(model), ["*pytorch_model*"], _HUB_IGNORED)
    return folder
