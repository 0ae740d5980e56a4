"""Which .onnx file is meant: by a file, a folder, a hub cache, or a folder and a name in it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.downloaded_file import check_downloaded
from fptq_onnx.model_io.json_files import read_config
from fptq_onnx.model_io.model_folder import GRAPHS, hub_snapshot

_SUFFIX = ".onnx"
_MODEL_FILE = "model.onnx"
_SHOWN = 12  # names in a message; onnx folders have one for each of a dozen precisions
_LEVELS = ("*/*.onnx", "*/*/*.onnx", "*/*/*/*.onnx")


def find_model_file(path: Path, name: str | None = None) -> Path:
    """The .onnx file that a user means.

    Args:
        path: the file; or a folder with it, or with a folder `onnx` that has it; or the top folder
            of a repository in a hub cache.
        name: of the file in the folder, with or without .onnx. Without a name it is the file that
            genai_config.json names, else model.onnx, else the only one.

    Raises:
        FptqError: no such path, or a folder with no or several candidates.
    """
    if path.is_file():
        if name is not None and name not in (path.name, path.stem):
            raise FptqError(f"--file {name} is for a folder, and {path} is a file: leave it out")
        return path
    if not path.is_dir():
        check_downloaded(path)
        hub = ""
        # Not where the first part is a folder here: then the path is misspelt.
        if not path.is_absolute() and len(path.parts) == 2 and not path.parent.exists():
            hub = f"; a model of the Hugging Face hub is exported first: fptq-onnx export {path}"
        raise FptqError(f"no such file or folder: {path}{hub}")
    folder = hub_snapshot(path)
    places = [folder, *(place for place in (folder / GRAPHS,) if place.is_dir())]
    if name is not None:
        return _named(places, name)
    for place in places:
        if (preferred := _preferred(place)) is not None:
            return preferred
        found = sorted(place.glob(f"*{_SUFFIX}"))
        if len(found) > 1:
            raise FptqError(
                f"{place} holds {len(found)} .onnx files and no {_MODEL_FILE}: {_listed(found)}; "
                f"give the path of one, or --file and its name"
            )
        if found:
            return found[0]
    below = [file for level in _LEVELS for file in sorted(folder.glob(level))]
    if not below:
        raise FptqError(f"{path} holds no .onnx file; give the path of the .onnx file itself")
    raise FptqError(
        f"{path} holds no .onnx file itself, folders in it do: {_listed(below, folder)}; give the "
        f"path of one, or --file and its name"
    )


def _preferred(folder: Path) -> Path | None:
    genai = read_config(folder, "genai_config.json").get("model")
    decoder = genai.get("decoder") if isinstance(genai, dict) else None
    named = decoder.get("filename") if isinstance(decoder, dict) else None
    for name in (named, _MODEL_FILE):
        # Only a plain name: a configuration must not send us to another folder.
        if isinstance(name, str) and Path(name).name == name:
            if (folder / name).is_symlink():
                check_downloaded(folder / name)
            if (folder / name).is_file():
                return folder / name
    return None


def _named(places: Sequence[Path], name: str) -> Path:
    for place in places:
        for choice in (place / name, place / f"{name}{_SUFFIX}"):
            if choice.is_symlink() or choice.is_file():
                check_downloaded(choice)
                return choice
    found = [file for place in places for file in sorted(place.glob(f"*{_SUFFIX}"))]
    holds = f"it holds {_listed(found, places[0])}" if found else "it holds no .onnx file"
    raise FptqError(f"{places[0]} has no file {name}: {holds}")


def _listed(files: Sequence[Path], folder: Path | None = None) -> str:
    """Names and sizes, external data included."""
    from fptq_onnx.progress import human_bytes

    shown = []
    for file in files[:_SHOWN]:
        parts = [one for one in file.parent.glob(f"{_escaped(file.name)}*") if one.is_file()]
        size = human_bytes(sum(part.stat().st_size for part in parts))
        name = file.name if folder is None else file.relative_to(folder).as_posix()
        shown.append(f"{name} ({size})")
    more = len(files) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def add_file_option(parser: argparse.ArgumentParser) -> None:
    """Declare --file, for every command that takes a model."""
    parser.add_argument(
        "--file",
        metavar="NAME",
        help="which .onnx file of the model's folder, where there are several (model.onnx)",
    )


def choose_file(options: argparse.Namespace) -> None:
    """Replace the model's folder by the file that --file names, and keep it as `given`.

    Raises:
        FptqError: see find_model_file.
    """
    options.given = getattr(options, "model", None)
    if getattr(options, "file", None) is not None and options.given is not None:
        options.model = find_model_file(options.given, options.file)
