"""genai_config.json, by which onnxruntime-genai runs a folder: model file and custom-op library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        decoder = config["model"]["decoder"]
        known = dict(decoder, filename=model_file)
        if library is not None:
            options = dict(decoder.get("session_options") or {})
            known["session_options"] = {**options, "custom_ops_library": library.name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if library is not None:
        shutil.copy(library, folder / library.name)
    if known != decoder:
        config["model"]["decoder"] = known
        path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    return True
