"""The tokenizer and configs that make a folder usable, copied along with the model."""

from __future__ import annotations

import shutil
from codecs import BOM_UTF8
from pathlib import Path

from fptq_onnx.downloaded_file import check_downloaded, read_head
from fptq_onnx.genai_config import GENAI_CONFIG, point_genai_config
from fptq_onnx.model_folder import SIDE_FILES, side_file
from fptq_onnx.text_encoding import copy_text, encoding_of

__all__ = ["SIDE_FILES", "check_side_files", "copy_side_files", "copy_tokenizer"]


def copy_side_files(
    source: Path, destination: Path, model_file: str, library: Path | None = None
) -> tuple[str, ...]:
    """Copy what is there of SIDE_FILES; point genai_config.json at what was written.

    Args:
        source: the folder of the original model; see side_file for where else they may be.
        destination: the output folder.
        model_file: name of the written model in it.
        library: the custom-op library that it needs; copied along for onnxruntime-genai, which
            finds it by genai_config.json, while other runtimes have it registered by the caller.

    Returns:
        Names of the files copied, without the library's.
    """
    copied = []
    for name in SIDE_FILES:
        if side_file(source, name).is_file():
            _copy(side_file(source, name), destination / name)
            copied.append(name)
    if GENAI_CONFIG in copied:
        point_genai_config(destination, model_file, library)
    return tuple(copied)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the tokenizer's files that `destination` has not got."""
    for name in SIDE_FILES:
        of_tokenizer = name.startswith("tokenizer") or name == "special_tokens_map.json"
        file = side_file(source, name)
        if of_tokenizer and file.is_file() and not (destination / name).exists():
            _copy(file, destination / name)


def check_side_files(folder: Path) -> None:
    """See before the work that what is to be copied was downloaded.

    Raises:
        FptqError: one of the files is a pointer or a web page, see check_downloaded.
    """
    for name in SIDE_FILES:
        check_downloaded(side_file(folder, name))


def _copy(source: Path, destination: Path) -> None:
    marked = encoding_of(read_head(source)) != "utf-8-sig" or read_head(source)[:3] == BOM_UTF8
    if marked and source.suffix != ".model":
        copy_text(source, destination)
    else:
        shutil.copyfile(source, destination)
