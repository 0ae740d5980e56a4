"""The JSON files beside a model, read one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object such as config.json; {} where the folder has no such file.

    Raises:
        FptqError: the file is there but is not a JSON object.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FptqError(f"cannot read {path}: {error}; mend or remove it") from error
    if not isinstance(content, dict):
        raise FptqError(f"{path} holds no JSON object; mend or remove it")
    return content
