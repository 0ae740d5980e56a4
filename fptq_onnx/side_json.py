"""The JSON files beside a model, as people have them: with a byte-order mark, or not downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fptq_onnx.downloaded_file import check_downloaded
from fptq_onnx.errors import FptqError
from fptq_onnx.model_folder import side_file
from fptq_onnx.text_encoding import read_text


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object such as config.json; {} where the model has no such file.

    Args:
        folder: of the model; see side_file for where else the file may be.
        name: of the file.

    Raises:
        FptqError: the file is there but is not a JSON object.
    """
    path = side_file(folder, name)
    check_downloaded(path)
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FptqError(f"cannot read {path}: {error}; mend or remove it") from error
    if not isinstance(content, dict):
        raise FptqError(f"{path} holds no JSON object; mend or remove it")
    return content
