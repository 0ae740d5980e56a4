"""Archives that would unpack to more than they should: refused before anything is written."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging import check_package as check_package_module
from fptq_onnx.packaging.archive import write_archive
from fptq_onnx.packaging.check_package import check_package


def pack(package: Path, files: list[tuple[str, bytes]]) -> None:
    """An archive of these files in this order."""
    if package.suffix == ".zip":
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(f"small/{name}", content)
    else:
        with tarfile.open(package, "w:gz") as archive_tar:
            for name, content in files:
                entry = tarfile.TarInfo(f"small/{name}")
                entry.size = len(content)
                archive_tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("suffix", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize(
    ("files", "match"),
    [
        (["manifest.json", "run.sh*"], "run.sh was changed in .*: it has 40000000 bytes, not 10"),
        (["manifest.json", "model/new*"], "model/new was added"),
        (["run.sh*"], "has run.sh of 40000000 bytes before its manifest.json"),
        (["manifest.json*"], "manifest.json is larger than a list"),
        (["manifest.json", "SHA256SUMS*"], "SHA256SUMS is larger than a list"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_never_unpacked(
    folder: Path, tmp_path: Path, suffix: str, files: list[str], match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """40 MB of zeros that take a few kilobytes, refused by their size alone."""
    content = [
        (name.rstrip("*"), bytes(40_000_000) if "*" in name else (folder / name).read_bytes())
        for name in files
    ]
    pack(tmp_path / suffix, content)
    written = []
    opened = check_package_module._open_below
    monkeypatch.setattr(
        check_package_module, "_open_below",
        lambda work, file: (written.append(file.name), opened(work, file))[1],
    )  # fmt: skip
    with pytest.raises(FptqError, match=match):
        check_package(tmp_path / suffix, tmp_path / "out")
    assert written == [name for name in files[:-1]]
    assert not (tmp_path / "out").exists()


def test_headers_that_unpack_to_more_than_is_listed(folder: Path, tmp_path: Path) -> None:
    """tarfile reads an extended header into memory, whatever its size."""
    package = tmp_path / "a.tar.gz"
    with tarfile.open(package, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, comment in (("manifest.json", ""), ("run.sh", "0" * 40_000_000)):
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(f"small/{name}")
            entry.size, entry.pax_headers = len(content), {"comment": comment} if comment else {}
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(FptqError, match="unpacks to more than its manifest"):
        check_package(package)


def test_no_room_for_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(folder, "small", tmp_path / "a.zip")
    usage = shutil._ntuple_diskusage(10**6, 10**6, 10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FptqError, match="unpacks to 10250 bytes, more than is free"):
        check_package(tmp_path / "a.zip", tmp_path / "out")
    check_package(tmp_path / "a.zip")


@pytest.mark.parametrize("suffix", ["a.tar.gz", "a.zip"])
def test_archives_begin_with_the_manifest(folder: Path, tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / suffix
    write_archive(folder, "small", archive)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
    else:
        with tarfile.open(archive) as packed_tar:
            names = packed_tar.getnames()
    first, *rest = names
    assert first == "small/manifest.json" and rest == sorted(rest)
