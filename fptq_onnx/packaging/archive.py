"""One archive of a folder, .tar.gz or .zip; the same bytes whenever the files are the same.

Members are sorted, manifest.json before all others, and belong to nobody, at no time.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.manifest import MANIFEST_FILE

SUFFIXES = (".tar.gz", ".tgz", ".zip")
# Weights hardly get smaller, whatever the level.
_LEVEL = 1
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first day a zip file knows
_UNIX = 3
_PIECE = 1 << 20


def check_suffix(path: Path) -> None:
    """Refuse a name that does not say what kind of archive it is to be.

    Raises:
        FptqError: not one of SUFFIXES.
    """
    if not path.name.endswith(SUFFIXES):
        raise FptqError(f"{path.name} must end in {' or '.join(SUFFIXES)}: choose a name with -o")


def write_archive(folder: Path, top: str, archive: Path) -> None:
    """Write a folder's files into an archive, under one folder.

    Args:
        folder: with the files.
        top: name of the folder in the archive.
        archive: the file to write; its suffix chooses the format.

    Raises:
        OSError: the disk is full or not writable.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # First the list of sizes, so that who unpacks knows what is to come.
    files.sort(key=lambda path: path != folder / MANIFEST_FILE)
    names = {f"{top}/{path.relative_to(folder).as_posix()}": path for path in files}
    with open(archive, "wb") as raw:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as packed:
                for name, path in names.items():
                    _add_to_zip(packed, name, path)
        else:
            with gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as stream:
                with tarfile.open(
                    fileobj=stream, mode="w", format=tarfile.PAX_FORMAT
                ) as packed_tar:
                    for name, path in names.items():
                        _add_to_tar(packed_tar, name, path)
        raw.flush()
        os.fsync(raw.fileno())


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def _add_to_tar(archive: tarfile.TarFile, name: str, path: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, _mode(path)
    with open(path, "rb") as file:
        archive.addfile(entry, file)


def _add_to_zip(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
    entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, _UNIX
    entry.external_attr = (0o100000 | _mode(path)) << 16
    entry.file_size = path.stat().st_size  # tells zipfile when 64-bit sizes are needed
    with open(path, "rb") as file, archive.open(entry, "w") as target:
        shutil.copyfileobj(file, target, _PIECE)
