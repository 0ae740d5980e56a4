"""What a user means by a Hugging Face model: a local folder, or a name on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import read_config
from fptq_onnx.model_folder import GRAPHS, hub_snapshot

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def is_hf_folder(path: Path) -> bool:
    """Whether `path` is a folder of a torch model: config.json and weights, and no ONNX model.

    Repositories that have both keep their graphs in the folder `onnx`.
    """
    return _has_weights(path) and not any(
        any(path.glob(pattern)) for pattern in ("*.onnx", f"{GRAPHS}/*.onnx")
    )


def _has_weights(path: Path) -> bool:
    return (
        path.is_dir()
        and (path / "config.json").is_file()
        and any(any(path.glob(pattern)) for pattern in _WEIGHTS)
    )


def check_hf_source(source: str) -> Path | None:
    """The folder that `source` names, or None where it can only be a name on the hub.

    Args:
        source: a folder, or `owner/name` as on huggingface.co.

    Raises:
        FptqError: neither, or a folder without config.json, architecture or weights, or with a
            model that is ONNX already.
    """
    if not source.strip():
        raise FptqError("the model's name is empty: give a Hugging Face folder, or owner/name")
    folder = Path(source)
    if not folder.exists():
        if _HUB_ID.fullmatch(source):
            return None
        raise FptqError(f"no such folder: {source}")
    folder = hub_snapshot(folder)
    if not folder.is_dir():
        raise FptqError(f"{source} is a file: give the Hugging Face folder it is in")
    if any(folder.glob("*.onnx")):
        raise FptqError(f"{source} holds an ONNX model already: give it to `fptq-onnx convert`")
    if not (folder / "config.json").is_file():
        raise FptqError(f"{source} is not a Hugging Face model: it has no config.json")
    if not _has_weights(folder):
        raise FptqError(f"{source} holds no weights (*.safetensors): download the model again")
    architectures = read_config(folder, "config.json").get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise FptqError(
            f"{folder / 'config.json'} names no architecture: export the model yourself"
        )
    return folder
