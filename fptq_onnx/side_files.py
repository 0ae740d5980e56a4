"""The tokenizer and configs that make a folder usable, copied along with the model."""

from __future__ import annotations

import shutil
from pathlib import Path

from fptq_onnx.genai_config import GENAI_CONFIG, point_genai_config

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    GENAI_CONFIG,
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def copy_side_files(
    source: Path, destination: Path, model_file: str, library: Path | None = None
) -> tuple[str, ...]:
    """Copy what is there of SIDE_FILES; point genai_config.json at what was written.

    Args:
        source: the folder of the original model.
        destination: the output folder.
        model_file: name of the written model in it.
        library: the custom-op library that it needs; copied along for onnxruntime-genai, which
            finds it by genai_config.json, while other runtimes have it registered by the caller.

    Returns:
        Names of the files copied, without the library's.
    """
    copied = []
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
            copied.append(name)
    if GENAI_CONFIG in copied:
        point_genai_config(destination, model_file, library)
    return tuple(copied)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the tokenizer's files that `destination` has not got."""
    for name in SIDE_FILES:
        of_tokenizer = name.startswith("tokenizer") or name == "special_tokens_map.json"
        if of_tokenizer and (source / name).is_file() and not (destination / name).exists():
            shutil.copyfile(source / name, destination / name)
