"""The tokenizer and configs that make a folder usable, copied along with the model."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from fptq_onnx.genai_config import GENAI_CONFIG, point_genai_config

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    GENAI_CONFIG,
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Chat templates for tools and other uses lie in a folder of their own.
TEMPLATE_FOLDER = "additional_chat_templates"
_OF_TOKENIZER = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
    TEMPLATE_FOLDER,
)


def side_files(folder: Path) -> list[str]:
    """What is there of SIDE_FILES and of further chat templates: paths below the folder."""
    templates = (folder / TEMPLATE_FOLDER).glob("*.jinja")
    names = [*SIDE_FILES, *sorted(f"{TEMPLATE_FOLDER}/{path.name}" for path in templates)]
    return [name for name in names if (folder / name).is_file()]


def copy_files(names: Iterable[str], source: Path, destination: Path) -> None:
    """Copy files of a folder by their paths below it.

    Raises:
        OSError: the disk is full or not writable.
    """
    for name in names:
        (destination / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, destination / name)


def copy_side_files(
    source: Path, destination: Path, model_file: str, library: Path | None = None
) -> tuple[str, ...]:
    """Copy the side files; point genai_config.json at what was written.

    Args:
        source: the folder of the original model.
        destination: the output folder.
        model_file: name of the written model in it.
        library: the custom-op library that it needs; copied along for onnxruntime-genai, which
            finds it by genai_config.json, while other runtimes have it registered by the caller.

    Returns:
        Names of the files copied, without the library's.
    """
    copied = side_files(source)
    copy_files(copied, source, destination)
    if GENAI_CONFIG in copied:
        point_genai_config(destination, model_file, library)
    return tuple(copied)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the tokenizer's files, chat templates included, that `destination` has not got.

    generation_config.json names the tokens that end its chats, and so comes with them.
    """
    names = [n for n in side_files(source) if n.startswith((*_OF_TOKENIZER, "generation_config"))]
    copy_files([name for name in names if not (destination / name).exists()], source, destination)
