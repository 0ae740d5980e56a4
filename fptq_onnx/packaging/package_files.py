"""The files of a package, one after the other: of a folder, a .tar.gz or a .zip.

Nothing is unpacked. A member that would leave its folder, a link, a device, or a name that comes
twice is refused where it stands.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any
from zlib import error as ZlibError

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.manifest import is_plain

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
def package_files(package: Path, allowance: Allowance) -> Iterator[Files]:
    """Walk through a package.

    Args:
        package: a folder or an archive.
        allowance: of bytes that come out of a .tar.gz, whatever they are; a .zip says the size of
            each file, and no more comes out of it.

    Raises:
        FptqError: no such package, a damaged one, or one with a member that is refused.
    """
    if package.is_dir():
        yield _of_folder(package)
        return
    if not package.is_file():
        raise FptqError(f"no package at {package}")
    try:
        if zipfile.is_zipfile(package):
            with zipfile.ZipFile(package) as packed:
                yield _of_zip(packed)
        else:
            # tarfile's own "r|gz" takes a file that is cut short for one that ends there.
            with gzip.open(package) as stream:
                counted: Any = _Counted(stream, allowance)
                with tarfile.open(fileobj=counted, mode="r|") as packed_tar:
                    yield _of_tar(packed_tar)
    except _DAMAGE as error:
        raise FptqError(f"{package} is not a .tar.gz or .zip, or is damaged ({error})") from error
    except gzip.BadGzipFile as error:
        raise FptqError(f"{package} is not a .tar.gz or .zip, or is damaged ({error})") from error


class _Counted:
    """A stream for tarfile."""

    def __init__(self, stream: gzip.GzipFile, allowance: Allowance) -> None:
        self._stream, self._allowance = stream, allowance

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._allowance.take(len(piece))
        return piece


def _of_folder(folder: Path) -> Files:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise FptqError(f"refused: {name} is a link")
        if path.is_file():
            with open(path, "rb") as file:
                about = path.stat()
                yield PackagedFile(name, about.st_size, bool(about.st_mode & 0o100), file)


def _of_tar(archive: tarfile.TarFile) -> Files:
    names = _Names()
    for entry in archive:
        if entry.isdir():
            names.check(entry.name)
            continue
        name = names.take(entry.name)
        if not entry.isreg():
            raise FptqError(f"refused: {entry.name!r} in the archive is a link or a device")
        file = archive.extractfile(entry)
        assert file is not None  # a regular file
        yield PackagedFile(name, entry.size, bool(entry.mode & 0o100), file)


def _of_zip(archive: zipfile.ZipFile) -> Files:
    names = _Names()
    for entry in archive.infolist():
        if entry.is_dir():
            names.check(entry.filename)
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

    def check(self, name: str) -> PurePosixPath:
        """Refuse a name that does not stay below the top folder."""
        trimmed = name.rstrip("/")
        if not is_plain(trimmed):
            raise FptqError(f"refused: {name!r} in the archive leads out of its folder")
        path = PurePosixPath(trimmed)
        if self._top is None:
            self._top = path.parts[0]
        if path.parts[0] != self._top:
            raise FptqError(f"refused: {name!r} lies beside the folder {self._top!r}")
        return path

    def take(self, name: str) -> str:
        """The path below the top folder."""
        parts = self.check(name).parts[1:]
        inner = "/".join(parts)
        if not parts or inner in self._seen:
            raise FptqError(f"refused: {name!r} is in the archive twice, or is no folder")
        self._seen.add(inner)
        return inner
