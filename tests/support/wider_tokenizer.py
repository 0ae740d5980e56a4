"""The embedded model with a tokenizer that has a token more than it: <image>, id 2048."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from command_line import MODEL

UNKNOWN = "the token '<image>' (id 2048) is beyond the model's 2048 tokens"


def wider_tokenizer(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model folder with such a tokenizer.

    Args:
        source: the folder to copy.
        folder: the copy, which must not exist.
        config: put into tokenizer_config.json.
    """
    shutil.copytree(source, folder)
    stored = json.loads((MODEL / "tokenizer.json").read_text("utf-8"))
    stored["added_tokens"].append({**stored["added_tokens"][0], "id": 2048, "content": "<image>"})
    (folder / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    settings = json.loads((MODEL / "tokenizer_config.json").read_text("utf-8"))
    settings.pop("backend")
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **config}), "utf-8")
    return folder
