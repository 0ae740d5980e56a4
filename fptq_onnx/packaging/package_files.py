"""The files of a package, one after the other: of a folder, a .tar.gz or a .zip.

Nothing is unpacked. A member that would leave its folder, a link, a device, a name that comes
twice, or bytes that belong to no member are refused where they stand.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any
from zlib import error as ZlibError

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.manifest import is_plain
from fptq_onnx.packaging.stray_bytes import GzipContent, check_zip

# What is wrong with an archive that is cut short or damaged, and not merely changed.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, ZlibError, LZMAError, ValueError, RuntimeError,
)  # fmt: skip

# What a tar file has beside the files' bytes: two headers, names and padding for each; in all, the
# end.
_TAR_MEMBER = 4096
_TAR_END = 1 << 20


@dataclass(frozen=True)
class PackagedFile:
    """A file of a package, to be read before the next one is asked for.

    name: its path in the package, without the one folder that an archive has at its top.
    size: bytes, as the archive or the disk says.
    executable: whether it may be executed.
    content: where to read it.
    """

    name: str
    size: int
    executable: bool
    content: IO[bytes]


Files = Iterator[PackagedFile]


class Allowance:
    """How many bytes may still come out of a compressed archive."""

    def __init__(self, total: int) -> None:
        """Begin.

        Args:
            total: bytes of all files.
        """
        self._read, self._most = 0, total + _TAR_END

    def set(self, total: int, files: int) -> None:
        """Know better.

        Args:
            total: bytes of all files.
            files: how many there are.
        """
        self._most = total + files * _TAR_MEMBER + _TAR_END

    def take(self, count: int) -> None:
        """Count what came out.

        Raises:
            FptqError: it is more than may.
        """
        self._read += count
        if self._read > self._most:
            raise FptqError("refused: the archive unpacks to more than its manifest.json lists")


@contextmanager
def package_files(package: Path, allowance: Allowance, folders: set[str]) -> Iterator[Files]:
    """Go through a package.

    Args:
        package: a folder or an archive.
        allowance: of bytes that come out of a .tar.gz, whatever they are; a .zip says the size of
            each file, and no more comes out of it.
        folders: gets the path of every folder that the package names, as it comes.

    Raises:
        FptqError: no such package, a damaged one, or one with a member that is refused.
    """
    if package.is_dir():
        yield _of_folder(package, folders)
        return
    if not package.is_file():
        raise FptqError(f"no package at {package}")
    try:
        with open(package, "rb") as raw:
            if zipfile.is_zipfile(raw):
                with zipfile.ZipFile(raw) as packed:
                    check_zip(packed, raw)
                    yield _of_zip(packed, folders)
            else:
                raw.seek(0)
                # tarfile's own "r|gz" takes a file that is cut short for one that ends there.
                content: Any = GzipContent(raw, allowance.take)
                with tarfile.open(fileobj=content, mode="r|") as packed_tar:
                    yield _of_tar(packed_tar, folders)
                    content.finish(packed_tar.offset)
    except _DAMAGE as error:
        raise FptqError(
            f"{package} is not a .tar.gz or .zip, or is damaged ({error}): get the package again"
        ) from error


def _of_folder(folder: Path, folders: set[str]) -> Files:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise FptqError(f"refused: {name} is a link")
        if path.is_dir():
            folders.add(name)
            continue
        if not path.is_file():
            raise FptqError(f"refused: {name} is a device")
        with open(path, "rb") as file:
            about = path.stat()
            yield PackagedFile(name, about.st_size, bool(about.st_mode & 0o100), file)


def _of_tar(archive: tarfile.TarFile, folders: set[str]) -> Files:
    names = _Names()
    for entry in archive:
        if entry.isdir():
            folders.add(names.below_top(entry.name))
            continue
        name = names.take(entry.name)
        if not entry.isreg():
            raise FptqError(f"refused: {entry.name!r} in the archive is a link or a device")
        file = archive.extractfile(entry)
        assert file is not None  # a regular file
        yield PackagedFile(name, entry.size, bool(entry.mode & 0o100), file)


def _of_zip(archive: zipfile.ZipFile, folders: set[str]) -> Files:
    names = _Names()
    for entry in archive.infolist():
        if entry.is_dir():
            folders.add(names.below_top(entry.filename))
            continue
        name = names.take(entry.filename)
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise FptqError(f"refused: {entry.filename!r} in the archive is a link or a device")
        with archive.open(entry) as file:
            yield PackagedFile(name, entry.file_size, bool(mode & 0o100), file)


class _Names:
    """Names of members, all below one folder, each once."""

    def __init__(self) -> None:
        self._top: str | None = None
        self._seen: set[str] = set()

    def below_top(self, name: str) -> str:
        """The path below the top folder, "" for that; refused unless it stays there."""
        trimmed = name.rstrip("/")
        if not is_plain(trimmed):
            raise FptqError(f"refused: {name!r} in the archive leads out of its folder")
        top, _, inner = trimmed.partition("/")
        if self._top is None:
            self._top = top
        if top != self._top:
            raise FptqError(f"refused: {name!r} lies beside the folder {self._top!r}")
        return inner

    def take(self, name: str) -> str:
        """The path of a file."""
        inner = self.below_top(name)
        if not inner or inner in self._seen:
            raise FptqError(f"refused: {name!r} is in the archive twice, or is no folder")
        self._seen.add(inner)
        return inner
