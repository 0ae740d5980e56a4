"""The tokenizer and configs that make a folder usable, copied along with the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def copy_side_files(source: Path, destination: Path, model_file: str) -> tuple[str, ...]:
    """Copy what is there of SIDE_FILES; point genai_config.json at `model_file`.

    Args:
        source: the folder of the original model.
        destination: the output folder.
        model_file: name of the written model in it.

    Returns:
        Names of the files copied.
    """
    copied = []
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
            copied.append(name)
    if "genai_config.json" in copied:
        _point_genai_config(destination / "genai_config.json", model_file)
    return tuple(copied)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the tokenizer's files that `destination` has not got."""
    for name in SIDE_FILES:
        of_tokenizer = name.startswith("tokenizer") or name == "special_tokens_map.json"
        if of_tokenizer and (source / name).is_file() and not (destination / name).exists():
            shutil.copyfile(source / name, destination / name)


def _point_genai_config(path: Path, model_file: str) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        decoder = config["model"]["decoder"]
        if decoder["filename"] == model_file:
            return
        decoder["filename"] = model_file
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return  # not a layout we know: the copy stays as it was
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
