"""manifest.json and SHA256SUMS: what a package holds, and how to tell that nothing was changed.

SHA256SUMS lists every file but itself, in the format of `sha256sum -c`; manifest.json says the same
of every file but these two, with sizes, and what the package is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.version import __version__

MANIFEST_FILE = "manifest.json"
SUMS_FILE = "SHA256SUMS"
FORMAT = 1
_PRINTED = ("name", "for", "target", "fptq_onnx")  # by --check
_PIECE = 1 << 20


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write both files for what is in a folder.

    Args:
        folder: complete but for these two.
        about: what the package is; plain data.

    Raises:
        FptqError: a file name cannot be written into SHA256SUMS.
        OSError: the disk is full or not writable.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            if not is_plain(name):
                raise FptqError(f"cannot package a file of the name {name!r}: rename it")
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    content = {"format": FORMAT, "fptq_onnx": __version__, **about, "files": files}
    text = json.dumps(content, indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    sums = {name: str(entry["sha256"]) for name, entry in files.items()}
    sums[MANIFEST_FILE] = hashlib.sha256(text.encode()).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def read_manifest(content: bytes, package: Path) -> dict[str, Any]:
    """What manifest.json says; each of its files has "bytes" and "sha256".

    Args:
        content: of the file.
        package: it is part of, for messages.

    Raises:
        FptqError: it cannot be read, or is of another version.
    """
    try:
        manifest = json.loads(content)
        version = manifest["format"]
        files = [(entry["bytes"], entry["sha256"]) for entry in manifest["files"].values()]
        known = all(type(size) is int and size >= 0 for size, _ in files)
        # Names are printed and written to; nothing else may be in them.
        known = known and all(is_plain(name) for name in manifest["files"])
        known = known and all(str(manifest.get(key)).isprintable() for key in _PRINTED)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FptqError(f"{package} has no {MANIFEST_FILE} that can be read") from error
    if version != FORMAT:
        raise FptqError(
            f"{package} is of format {version!r}, this fptq-onnx knows {FORMAT}: use a newer one"
        )
    if not known:
        raise FptqError(f"{package} has no {MANIFEST_FILE} that can be read")
    return dict(manifest)


def is_plain(name: str) -> bool:
    """Whether a name is a relative path that stays where it is, in printable characters.

    Empty parts, "." and ".." are none, nor is a backslash, which SHA256SUMS would escape.
    """
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
