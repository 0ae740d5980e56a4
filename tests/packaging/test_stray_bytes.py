"""Packages with what belongs to no file: empty folders, bytes before, between and after."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.archive import write_archive
from fptq_onnx.packaging.check_package import check_package


def refused(package: Path, match: str) -> None:
    """Checking fails, and unpacking leaves nothing."""
    before = sorted(package.parent.iterdir())
    for out in (None, package.parent / "out"):
        with pytest.raises(FptqError, match=match) as caught:
            check_package(package, out)
        assert "\n" not in str(caught.value)
    assert sorted(package.parent.iterdir()) == before


def with_folders(folder: Path, package: Path, folders: list[str]) -> None:
    """An archive of a folder, with members for folders before its files."""
    write_archive(folder, "small", package)
    content = package.read_bytes()
    if package.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(package, "w") as new:
            for name in folders:
                new.writestr(f"small/{name}/", "")
            for entry in old.infolist():
                new.writestr(entry, old.read(entry))
        return
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(package, "w:gz") as new:
        for name in folders:
            made = tarfile.TarInfo(f"small/{name}")
            made.type = tarfile.DIRTYPE
            new.addfile(made)
        for entry in old:
            new.addfile(entry, old.extractfile(entry))


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip"])
def test_empty_folders_of_an_archive(folder: Path, tmp_path: Path, kind: str) -> None:
    package = tmp_path / kind
    with_folders(folder, package, ["", "model"])  # as tar and zip write them
    assert check_package(package).files == 4
    with_folders(folder, package, ["", "model", "model/none"])
    refused(package, r"the empty folder model/none was added \(no list .*: get the package again")
    with_folders(folder, package, ["a", "model", "model/none"])
    refused(package, r"the empty folder a \(and 1 more\) was added")


def test_empty_folders_and_devices_of_a_folder(folder: Path) -> None:
    (folder / "model" / "none").mkdir()
    refused(folder, "the empty folder model/none was added")
    (folder / "model" / "none").rmdir()
    os.mkfifo(folder / "pipe")
    refused(folder, "refused: pipe is a device")


def tar_and_more(more: bytes) -> Callable[[bytes], bytes]:
    """The .tar.gz with more in its stream, after the tar file's end."""
    return lambda content: gzip.compress(gzip.decompress(content) + more)


def no_end_blocks(content: bytes) -> bytes:
    """A block which is no header where the tar file should end, then zeros."""
    plain = gzip.decompress(content)
    end = len(plain.rstrip(b"\0"))
    end += -end % 512
    return gzip.compress(plain[:end] + b"x" * 512 + plain[end + 512 :])


def wrong_sum(content: bytes) -> bytes:
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


AFTER = "refused: the archive has bytes after .*, which no list names: get the package again"
TAR: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a byte more": (lambda content: content + b"x", AFTER),
    "zeros more": (lambda content: content + bytes(100_000), AFTER),
    "another gzip stream": (lambda content: content + gzip.compress(b""), AFTER),
    "another tar file": (lambda content: content + content, AFTER),
    "more in the stream": (tar_and_more(b"x"), AFTER),
    "more in the stream, far off": (tar_and_more(bytes(90_000) + b"x"), AFTER),
    "a block in the place of the end": (no_end_blocks, AFTER),
    "bytes before": (lambda content: b"x" + content, "is not a .tar.gz or .zip, or is damaged"),
    "no size": (lambda content: content[:-4], "or is damaged .it ends before its time"),
    "no sum": (lambda content: content[:-8], "or is damaged .it ends before its time"),
    "half a sum": (lambda content: content[:-6], "or is damaged .it ends before its time"),
    "another sum": (wrong_sum, "or is damaged .*incorrect data check"),
    "zeros without end": (tar_and_more(bytes(50_000_000)), "unpacks to more than its manifest"),
}


@pytest.mark.parametrize(("spoil", "match"), TAR.values(), ids=TAR)
def test_bytes_of_a_tar(
    folder: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], match: str
) -> None:
    package = tmp_path / "a.tar.gz"
    write_archive(folder, "small", package)
    content = package.read_bytes()
    package.write_bytes(gzip.compress(gzip.decompress(content)))
    assert check_package(package).files == 4  # another packer's
    package.write_bytes(spoil(content))
    refused(package, match)


def commented(content: bytes) -> bytes:
    held = io.BytesIO(content)
    with zipfile.ZipFile(held, "a") as archive:
        archive.comment = b"x"
    return held.getvalue()


def unlisted(content: bytes) -> bytes:
    """A member which the directory does not name, between the others."""
    held = io.BytesIO(content)
    with zipfile.ZipFile(held, "a") as archive:
        archive.writestr("small/hidden", "x")
        archive.writestr("small/model/later", "x")
        archive.filelist.pop(-2)
    return held.getvalue()


def before_directory(content: bytes) -> bytes:
    held = io.BytesIO(content)
    with zipfile.ZipFile(held, "a") as archive:
        archive.writestr("small/hidden", "x")
        archive.filelist.pop()
    return held.getvalue()


def shifted(content: bytes) -> bytes:
    """Bytes before, which the directory knows of: as in a program that unpacks itself."""
    held = io.BytesIO(b"#!/bin/sh\n")
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(held, "a") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
    return held.getvalue()


def as_a_stream(content: bytes) -> bytes:
    """Written without seeking: sizes follow the data."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = b""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:  # type: ignore[no-untyped-def]
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(pipe, "w") as new:  # type: ignore[call-overload]
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
    return pipe.written


ZIP: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a byte more": (lambda content: content + b"x", "has bytes after its end"),
    "a comment": (commented, "has bytes after its end"),
    "bytes before": (lambda content: b"x" + content, "has bytes before 'small/manifest.json'"),
    "bytes before that it knows of": (shifted, "has bytes before 'small/manifest.json'"),
    "another before": (lambda content: content + content, "before 'small/manifest.json'"),
    "a hidden member": (unlisted, "has bytes before 'small/model/later'"),
    "a hidden member at the end": (before_directory, "has bytes before its directory"),
    "cut": (lambda content: content[:-1], "is not a .tar.gz or .zip, or is damaged"),
}


@pytest.mark.parametrize(("spoil", "match"), ZIP.values(), ids=ZIP)
def test_bytes_of_a_zip(
    folder: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], match: str
) -> None:
    package = tmp_path / "a.zip"
    write_archive(folder, "small", package)
    content = package.read_bytes()
    package.write_bytes(as_a_stream(content))
    assert check_package(package).files == 4
    package.write_bytes(spoil(content))
    refused(package, match)


def test_a_zip_behind_a_tar(folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "a"
    content = b""
    for kind in ("a.tar.gz", "a.zip"):
        write_archive(folder, "small", tmp_path / kind)
        content += (tmp_path / kind).read_bytes()
    package.write_bytes(content)
    refused(package, "has bytes before 'small/manifest.json'")


def test_zeros_compress_well(folder: Path, tmp_path: Path) -> None:
    """Output that waits in zlib after all input is used is not lost."""
    (folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 40)
    package = tmp_path / "a.tar.gz"
    write_archive(folder, "small", package)
    plain = gzip.decompress(package.read_bytes())
    for level in (0, 9):
        package.write_bytes(gzip.compress(plain + bytes(700_000), level))
        assert check_package(package).files == 4
    assert zlib.crc32(plain)
