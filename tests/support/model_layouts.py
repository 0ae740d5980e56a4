"""The embedded model, laid out as hubs and people do."""

from __future__ import annotations

import shutil
from pathlib import Path

from command_line import MODEL

GRAPHS = ("model.onnx", "model.onnx.data")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(root: Path, source: Path = MODEL, *, below: str = "") -> Path:
    """`source` as huggingface_hub caches it; `below` is a folder of the repository for the graphs.

    Returns:
        The top folder, models--owner--story.
    """
    top = root / "hub" / "models--owner--story"
    blobs, snapshot = top / "blobs", top / "snapshots" / REVISION
    blobs.mkdir(parents=True)
    (snapshot / below).mkdir(parents=True)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text(REVISION)
    for number, file in enumerate(sorted(source.iterdir())):
        if file.is_file():
            shutil.copyfile(file, blobs / f"{number:064x}")
            place = snapshot / (below if file.name in GRAPHS else "") / file.name
            up = "../" * (len(place.relative_to(top).parts) - 1)
            place.symlink_to(f"{up}blobs/{number:064x}")
    return top


def onnx_subfolder(root: Path) -> Path:
    """The embedded model as transformers.js and optimum have it: graphs in onnx, the rest above."""
    folder = root / "story"
    shutil.copytree(MODEL, folder)
    (folder / "onnx").mkdir()
    for name in GRAPHS:
        (folder / name).rename(folder / "onnx" / name)
    return folder
