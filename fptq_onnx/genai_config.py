"""genai_config.json, by which onnxruntime-genai runs a folder: model file and custom-op library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.text_encoding import read_text

GENAI_CONFIG = "genai_config.json"


def point_genai_config(folder: Path, model_file: str, library: Path | None = None) -> bool:
    """Make the folder's genai_config.json name the model file, and the library if it needs one.

    onnxruntime-genai takes a library from inside the model's folder only, no link and no path
    that leads out of it, so the library is copied there.

    Args:
        folder: with genai_config.json; without one nothing is done.
        model_file: name of the .onnx file in it.
        library: the custom-op library that the model needs.

    Returns:
        Whether there was a configuration of a layout we know; another stays as it is.
    """
    path = folder / GENAI_CONFIG
    try:
        config: Any = json.loads(read_text(path))
    except (OSError, ValueError, FptqError):
        return False
    known = pointed_config(config, model_file, library.name if library is not None else None)
    if known is None:
        return False
    if library is not None:
        shutil.copy(library, folder / library.name)
    if known != config:
        path.write_text(json.dumps(known, indent=4), encoding="utf-8")
    return True


def pointed_config(config: Any, model_file: str, library_name: str | None) -> dict[str, Any] | None:
    """A configuration that names this model file and library; None for a layout we do not know.

    Args:
        config: the content of genai_config.json; stays as it is.
        model_file: name of the .onnx file beside it.
        library_name: of the custom-op library beside it; None for a model that needs none.
    """
    try:
        decoder = dict(config["model"]["decoder"], filename=model_file)
        options = dict(decoder.get("session_options") or {})
        if library_name is not None:
            options["custom_ops_library"] = library_name
        else:
            options.pop("custom_ops_library", None)
        if options or "session_options" in decoder:
            decoder["session_options"] = options
        return {**config, "model": {**config["model"], "decoder": decoder}}
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
