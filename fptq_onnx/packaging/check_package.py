"""Compare a package with its own checksums; unpack it only if they agree."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.output_folder import atomic_folder
from fptq_onnx.packaging.listed_sizes import MOST_UNKNOWN, NOT_LISTED, ListedSizes
from fptq_onnx.packaging.manifest import MANIFEST_FILE, SUMS_FILE, read_manifest
from fptq_onnx.packaging.package_files import Allowance, PackagedFile, package_files

_PIECE = 1 << 20
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class CheckedPackage:
    """A package whose files are as they were packaged.

    manifest: what manifest.json says.
    files: how many were compared.
    bytes: their size.
    """

    manifest: Mapping[str, Any]
    files: int
    bytes: int


def check_package(package: Path, unpack_to: Path | None = None) -> CheckedPackage:
    """Compare every file with SHA256SUMS; there may be nothing else.

    The sums are in the package, so they show damage and careless changes. Against somebody who
    changes both, compare the sum of the archive itself with the one its maker tells.

    Args:
        package: an archive or a folder that `fptq-onnx package` wrote.
        unpack_to: a folder to make and unpack into; nothing is left there unless all is well, and
            no more than manifest.json lists is ever written.

    Raises:
        FptqError: a file is changed, missing or too many; a folder is empty; too little room; or
            see `package_files`.
    """
    if unpack_to is None:
        return _check(package, None)
    if unpack_to.exists():
        raise FptqError(f"the output {unpack_to} exists: choose another with -o")
    with atomic_folder(unpack_to) as work:
        return _check(package, work)


def _check(package: Path, work: Path | None) -> CheckedPackage:
    found: dict[str, str] = {}
    lists: dict[str, bytes] = {}
    allowance = Allowance(MOST_UNKNOWN)
    sizes = ListedSizes(package)
    folders: set[str] = set()
    with package_files(package, allowance, folders) as files:
        for file in files:
            sizes.check(file)
            target = None if work is None else _open_below(work, file)
            try:
                found[file.name], kept = _copy(file, target)
            finally:
                if target is not None:
                    target.close()
            if file.name in (MANIFEST_FILE, SUMS_FILE):
                lists[file.name] = kept
            if file.name == MANIFEST_FILE:
                sizes.read(kept, work)
                allowance.set(sizes.total, len(sizes.listed))
    sums = _sums(package, lists)
    _compare(package, sums, found, folders)
    manifest = _manifest(package, lists, sums)
    return CheckedPackage(manifest, len(sums) + 1, sizes.seen)


def _copy(file: PackagedFile, target: IO[bytes] | None) -> tuple[str, bytes]:
    """The sum of a file, and its content where that is a list."""
    digest, kept, read = hashlib.sha256(), bytearray(), 0
    while piece := file.content.read(_PIECE):
        read += len(piece)
        if read > file.size:
            raise FptqError(f"refused: {file.name} is larger than the archive says")
        digest.update(piece)
        if file.name in (MANIFEST_FILE, SUMS_FILE):
            kept += piece
        if target is not None:
            target.write(piece)
    return digest.hexdigest(), bytes(kept)


def _open_below(work: Path, file: PackagedFile) -> IO[bytes]:
    path = work / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    target = open(path, "xb")
    path.chmod(0o755 if file.executable else 0o644)
    return target


def _sums(package: Path, lists: Mapping[str, bytes]) -> dict[str, str]:
    if SUMS_FILE not in lists:
        raise FptqError(f"{package} is no package of `fptq-onnx package`: it has no {SUMS_FILE}")
    sums = {}
    for line in lists[SUMS_FILE].decode("utf-8", "replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise FptqError(f"{SUMS_FILE} of {package} is damaged: get the package again")
        sums[match.group(2)] = match.group(1)
    return sums


def _compare(
    package: Path, sums: Mapping[str, str], found: Mapping[str, str], folders: set[str]
) -> None:
    changed = sorted(name for name in sums if name in found and found[name] != sums[name])
    missing = sorted(set(sums) - set(found))
    added = sorted(set(found) - set(sums) - {SUMS_FILE})
    full = {str(above) for name in found for above in PurePosixPath(name).parents}
    empty = sorted(f"the empty folder {name}" for name in folders - full - {""})
    for names, what in (
        (changed, "was changed"), (missing, "is missing"), (added, NOT_LISTED), (empty, NOT_LISTED),
    ):  # fmt: skip
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise FptqError(f"{names[0]}{more} {what} in {package}: get the package again")


def _manifest(
    package: Path, lists: Mapping[str, bytes], sums: Mapping[str, str]
) -> Mapping[str, Any]:
    """manifest.json, which must agree with SHA256SUMS: people may read either."""
    manifest = read_manifest(lists[MANIFEST_FILE], package)
    listed = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    if {**listed, MANIFEST_FILE: sums.get(MANIFEST_FILE)} != dict(sums):
        raise FptqError(f"{MANIFEST_FILE} and {SUMS_FILE} of {package} do not agree")
    return manifest
