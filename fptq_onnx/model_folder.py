"""Where a model's files are: beside it, in the folder above an `onnx` folder, or in a hub cache.

Three layouts are known. All files in one folder, as exporters write them. The repositories for
transformers.js and optimum: configuration and tokenizer in the repository, the graphs in its folder
`onnx`. And the cache of huggingface_hub: `models--owner--name` holds `refs/main`, the name of a
revision, and `snapshots/<revision>`, a folder of links into `blobs`.
"""

from __future__ import annotations

from pathlib import Path

from fptq_onnx.errors import FptqError

GRAPHS = "onnx"
SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Chat templates for tools and other uses lie in a folder of their own.
TEMPLATE_FOLDER = "additional_chat_templates"
_DEPTH = 2  # onnx/model.onnx, and onnx/<variant>/model.onnx
_REPOSITORY, _SNAPSHOTS, _BLOBS = "models--", "snapshots", "blobs"


def side_file(folder: Path, name: str) -> Path:
    """Where a model's configuration or tokenizer file is.

    Args:
        folder: of the .onnx file, or the repository's.
        name: of the file, such as config.json; only SIDE_FILES and TEMPLATE_FOLDER are looked
            for above.

    Returns:
        The file beside the model; else the one above, where `folder` is, or is in, one called
        onnx; else the path beside the model, where there is no file.
    """
    place = folder / name
    if name not in (*SIDE_FILES, TEMPLATE_FOLDER) or place.is_symlink() or place.exists():
        return place
    return next((above / name for above in _above(folder) if (above / name).exists()), place)


def _above(folder: Path) -> list[Path]:
    """The folders above, up to the one that holds a folder called onnx; [] where there is none."""
    names = folder.absolute()  # a link's neighbours are those of the link
    for depth in range(_DEPTH):
        place = names if depth == 0 else names.parents[depth - 1]
        if place.name.lower() == GRAPHS:
            return list(names.parents[: depth + 1])
        if len(names.parents) <= depth + 1:
            break
    return []


def hub_snapshot(path: Path) -> Path:
    """The snapshot that is meant by the top folder of a repository in a hub cache.

    Args:
        path: any path.

    Returns:
        snapshots/<revision> of refs/main, or the only snapshot; any other path as it is.

    Raises:
        FptqError: no snapshot, or several and no refs/main.
    """
    top = path.absolute()
    if top.name == _SNAPSHOTS and top.parent.name.startswith(_REPOSITORY):
        top = top.parent
    if not (top / _SNAPSHOTS).is_dir() or any(path.glob("*.onnx")):
        return path
    if not (top.name.startswith(_REPOSITORY) or (top / "refs").is_dir()):
        return path
    try:
        revision = (top / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        revision = ""
    plain = revision not in ("", ".", "..") and Path(revision).name == revision
    if plain and (top / _SNAPSHOTS / revision).is_dir():
        return top / _SNAPSHOTS / revision
    found = sorted(place for place in (top / _SNAPSHOTS).iterdir() if place.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise FptqError(f"{path} is a hub cache without a snapshot: download the model again")
    raise FptqError(
        f"{path} is a hub cache of {len(found)} snapshots and no refs/main says which: give one of "
        f"{top / _SNAPSHOTS}: {', '.join(place.name for place in found)}"
    )


def hub_repository(path: Path) -> Path | None:
    """The folder models--owner--name of a hub cache that a path is in; None if it is in none."""
    places = (path.absolute(), *path.absolute().parents)
    for place in places:
        if place.name.startswith(_REPOSITORY) and (place / _SNAPSHOTS).is_dir():
            return place
    return None


def hub_blobs(folder: Path) -> Path | None:
    """Where the links of a hub cache's snapshot lead; None for a folder in no snapshot."""
    repository = hub_repository(folder)
    if repository is None or repository / _SNAPSHOTS not in folder.absolute().parents:
        return None
    return repository / _BLOBS


def model_name(path: Path) -> str:
    """What to call a model: owner/name in a hub cache, else its folder's name.

    Args:
        path: the .onnx file, or its folder.
    """
    repository = hub_repository(path)
    if repository is not None:
        return repository.name.removeprefix(_REPOSITORY).replace("--", "/")
    folder = (path if path.is_dir() else path.parent).resolve()
    above = _above(folder)
    return (above[-1] if above else folder).name
