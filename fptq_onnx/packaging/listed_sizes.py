"""How large the files of a package may be: manifest.json says it before they are unpacked."""

from __future__ import annotations

import shutil
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.manifest import MANIFEST_FILE, SUMS_FILE, read_manifest
from fptq_onnx.packaging.package_files import PackagedFile

# Bytes of each list, which is read into memory, and of what comes before manifest.json: an archive
# of ours begins with it.
_LIST = 16 << 20
MOST_UNKNOWN = 2 * _LIST
NOT_LISTED = "was added (no list names it)"


class ListedSizes:
    """Refuses a file that has not the listed size, or is not listed, before any of it is read.

    listed: bytes by name, of all files but the two lists; empty until `read`.
    total: of all files at most.
    seen: bytes of the files so far.
    """

    def __init__(self, package: Path) -> None:
        """Begin to look at a package."""
        self._package = package
        self._known = False
        self.listed: dict[str, int] = {}
        self.total = 0
        self.seen = 0

    def check(self, file: PackagedFile) -> None:
        """Look at the next file.

        Raises:
            FptqError: it may not be there, or not of that size.
        """
        self.seen += file.size
        if file.name in (MANIFEST_FILE, SUMS_FILE):
            if file.size > _LIST:
                raise FptqError(f"refused: {file.name} is larger than a list of files can be")
        elif not self._known:
            if self.seen > MOST_UNKNOWN and not self._package.is_dir():
                raise FptqError(
                    f"refused: {self._package} has {file.name} of {file.size} bytes before its "
                    f"{MANIFEST_FILE}"
                )
        elif file.name not in self.listed:
            raise FptqError(f"{file.name} {NOT_LISTED} in {self._package}: get the package again")
        elif file.size != self.listed[file.name]:
            raise FptqError(
                f"{file.name} was changed in {self._package}: it has {file.size} bytes, not "
                f"{self.listed[file.name]}; get the package again"
            )

    def read(self, manifest: bytes, unpack_to: Path | None) -> None:
        """Know the sizes from now on.

        Args:
            manifest: content of manifest.json.
            unpack_to: where all of it will be written, None for nowhere.

        Raises:
            FptqError: it cannot be read, or the files have no room there.
        """
        files = read_manifest(manifest, self._package)["files"]
        self.listed = {name: entry["bytes"] for name, entry in files.items()}
        self.total = sum(self.listed.values()) + MOST_UNKNOWN
        self._known = True
        if unpack_to is not None and sum(self.listed.values()) > shutil.disk_usage(unpack_to).free:
            raise FptqError(
                f"{self._package} unpacks to {sum(self.listed.values())} bytes, more than is free "
                "there: choose another place with -o"
            )
