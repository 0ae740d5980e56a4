"""The tokenizer and configs that make a folder usable, copied along with the model."""

from __future__ import annotations

import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable
from pathlib import Path

from fptq_onnx.model_io.downloaded_file import check_downloaded, read_head
from fptq_onnx.model_io.genai_config import GENAI_CONFIG, point_genai_config
from fptq_onnx.model_io.model_folder import SIDE_FILES, TEMPLATE_FOLDER, hub_snapshot, side_file
from fptq_onnx.model_io.text_encoding import copy_text, encoding_of

__all__ = [
    "SIDE_FILES",
    "check_side_files",
    "copy_files",
    "copy_side_files",
    "copy_tokenizer",
    "folder_of_tokenizer",
    "side_files",
]

_OF_TOKENIZER = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
    TEMPLATE_FOLDER,
)


def folder_of_tokenizer(path: Path) -> Path:
    """The folder meant by --tokenizer, which may name the file in it."""
    return path.parent if path.is_file() else hub_snapshot(path)


def side_files(folder: Path) -> list[str]:
    """What there is of SIDE_FILES and of further chat templates, by their paths below a folder.

    Args:
        folder: of the model; see side_file for where else the files may be.
    """
    templates = side_file(folder, TEMPLATE_FOLDER).glob("*.jinja")
    names = [name for name in SIDE_FILES if side_file(folder, name).is_file()]
    return [*names, *sorted(f"{TEMPLATE_FOLDER}/{path.name}" for path in templates)]


def copy_files(names: Iterable[str], source: Path, destination: Path) -> None:
    """Copy side files of a model.

    Args:
        names: as `side_files` gives them.
        source: the model's folder.
        destination: an existing folder.

    Raises:
        OSError: the disk is full or not writable.
    """
    for name in names:
        (destination / name).parent.mkdir(exist_ok=True)
        _copy(_place(source, name), destination / name)


def copy_side_files(
    source: Path, destination: Path, model_file: str, library: Path | None = None
) -> tuple[str, ...]:
    """Copy the side files; point genai_config.json at what was written.

    Args:
        source: the folder of the original model; see side_file for where else they may be.
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


def check_side_files(folder: Path) -> None:
    """See before the work that what is to be copied was downloaded.

    Raises:
        FptqError: one of the files is a pointer or a web page, see check_downloaded.
    """
    for name in (*SIDE_FILES, *side_files(folder)):
        check_downloaded(_place(folder, name))


def _place(folder: Path, name: str) -> Path:
    top, _, rest = name.partition("/")
    return side_file(folder, top) / rest if rest else side_file(folder, top)


def _copy(source: Path, destination: Path) -> None:
    marked = encoding_of(read_head(source)) != "utf-8-sig" or read_head(source)[:3] == BOM_UTF8
    if marked and source.suffix != ".model":
        copy_text(source, destination)
    else:
        shutil.copyfile(source, destination)
