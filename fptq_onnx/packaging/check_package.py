"""Compare a package with its own checksums; unpack it only if they agree."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.output_folder import atomic_folder
from fptq_onnx.packaging.manifest import FORMAT, MANIFEST_FILE, SUMS_FILE
from fptq_onnx.packaging.package_files import package_files

# Lists of files are read into memory; a longer one is nobody's package.
_LONGEST_LIST = 16 << 20
_PIECE = 1 << 20
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class CheckedPackage:
    """A package whose files are as they were packaged.

    manifest: what manifest.json says.
    files: how many were compared.
    bytes: their size.
    unlisted: files of a folder that no list names: made later, such as a build.
    """

    manifest: Mapping[str, Any]
    files: int
    bytes: int
    unlisted: tuple[str, ...]


def check_package(package: Path, unpack_to: Path | None = None) -> CheckedPackage:
    """Compare every file with SHA256SUMS.

    The sums are in the package, so they show damage and careless changes. Against somebody who
    changes both, compare the sum of the archive itself with the one its maker tells.

    Args:
        package: an archive or a folder that `fptq-onnx package` wrote.
        unpack_to: a folder to make and unpack into; nothing is left there unless all is well.

    Raises:
        FptqError: a file is changed, missing or too many; or see `package_files`.
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
    total = 0
    with package_files(package) as files:
        for name, file, executable in files:
            digest, kept = hashlib.sha256(), bytearray()
            keep = name in (MANIFEST_FILE, SUMS_FILE)
            target = None if work is None else _open_below(work, name, executable)
            try:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    total += len(piece)
                    if keep:
                        kept += piece
                    if len(kept) > _LONGEST_LIST:
                        raise FptqError(f"refused: {name} is larger than a list of files can be")
                    if target is not None:
                        target.write(piece)
            finally:
                if target is not None:
                    target.close()
            found[name] = digest.hexdigest()
            if keep:
                lists[name] = bytes(kept)
    sums = _sums(package, lists)
    _compare(package, sums, found)
    manifest = _manifest(package, lists, sums)
    unlisted = tuple(sorted(set(found) - set(sums) - {SUMS_FILE}))
    if unlisted and not package.is_dir():
        raise FptqError(f"{package} holds {unlisted[0]}, which {SUMS_FILE} does not list")
    return CheckedPackage(manifest, len(sums) + 1, total, unlisted)


def _open_below(work: Path, name: str, executable: bool) -> Any:
    path = work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    target = open(path, "xb")
    path.chmod(0o755 if executable else 0o644)
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


def _compare(package: Path, sums: Mapping[str, str], found: Mapping[str, str]) -> None:
    changed = sorted(name for name in sums if name in found and found[name] != sums[name])
    missing = sorted(set(sums) - set(found))
    for names, what in ((changed, "was changed"), (missing, "is missing")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise FptqError(f"{names[0]}{more} {what} in {package}: get the package again")


def _manifest(
    package: Path, lists: Mapping[str, bytes], sums: Mapping[str, str]
) -> Mapping[str, Any]:
    """manifest.json, which must agree with SHA256SUMS: people may read either."""
    try:
        manifest = json.loads(lists[MANIFEST_FILE])
        listed = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        version = manifest["format"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FptqError(f"{package} has no {MANIFEST_FILE} that can be read") from error
    if version != FORMAT:
        raise FptqError(
            f"{package} is of format {version!r}, this fptq-onnx knows {FORMAT}: use a newer one"
        )
    if {**listed, MANIFEST_FILE: sums.get(MANIFEST_FILE)} != dict(sums):
        raise FptqError(f"{MANIFEST_FILE} and {SUMS_FILE} of {package} do not agree")
    return dict(manifest)
