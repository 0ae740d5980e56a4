"""Tampered packages and hostile archives: each refused with its reason, nothing written."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.archive import write_archive
from fptq_onnx.packaging.check_package import check_package


@pytest.fixture(params=["small.tar.gz", "small.zip"])
def archive(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    place = tmp_path / str(request.param)
    write_archive(folder, "small", place)
    return place


def test_an_honest_package(archive: Path, folder: Path, tmp_path: Path) -> None:
    for package in (archive, folder):
        found = check_package(package)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert (found.files, found.bytes) == (4, sum(sizes))
        assert found.manifest["name"] == "small"
    out = tmp_path / "out"
    check_package(archive, out)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == names
    for name in names:
        if (folder / name).is_file():
            assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert (out / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (out / "model" / "weights.bin").stat().st_mode & 0o111 == 0
    with pytest.raises(FptqError, match=r"the output .* exists"):
        check_package(archive, out)


@pytest.mark.process
def test_sha256sum_agrees(folder: Path) -> None:
    command = ["sha256sum", "-c", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / "run.sh").write_text("#!/bin/sh\nrm\n")
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1


def spoil_weights(folder: Path) -> None:
    data = bytearray((folder / "model" / "weights.bin").read_bytes())
    data[5000] ^= 1
    (folder / "model" / "weights.bin").write_bytes(data)


def spoil_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("linux-x86_64", "linux-aarch64"))


def spoil_sums(folder: Path) -> None:
    """A changed file with its new sum in SHA256SUMS, but not in the manifest."""
    old = hashlib.sha256((folder / "run.sh").read_bytes()).hexdigest()
    (folder / "run.sh").write_text("#!/bin/ls\n")
    new = hashlib.sha256((folder / "run.sh").read_bytes()).hexdigest()
    text = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(text.replace(old, new))


def garble(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("no sums here\n")


def other_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format"] = 99
    text = json.dumps(manifest)
    old = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(text)
    sums = (folder / "SHA256SUMS").read_text()
    new = hashlib.sha256(text.encode()).hexdigest()
    (folder / "SHA256SUMS").write_text(sums.replace(old, new))


def bad_size(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"bytes": 10,', '"bytes": "10",'))


def in_manifest(old: str, new: str) -> Callable[[Path], None]:
    """Change manifest.json, and its sum as well."""

    def spoil(folder: Path) -> None:
        path = folder / "manifest.json"
        before, text = hashlib.sha256(path.read_bytes()).hexdigest(), path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        after = hashlib.sha256(path.read_bytes()).hexdigest()
        sums = (folder / "SHA256SUMS").read_text()
        (folder / "SHA256SUMS").write_text(sums.replace(before, after))

    return spoil


NOT_READ = "no manifest.json that can be read"
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit of the weights": (spoil_weights, "model/weights.bin was changed"),
    "the manifest": (spoil_manifest, "manifest.json was changed"),
    "a file and its sum": (spoil_sums, "manifest.json and SHA256SUMS of .* do not agree"),
    "a file that grew": (
        lambda f: (f / "run.sh").write_text("#!/bin/sh\nrm\n"),
        "run.sh was changed in .*: it has 13 bytes, not 10",
    ),
    "a file too many": (
        lambda f: (f / "model" / "z").write_text("x"),
        r"model/z was added \(no list names it\)",
    ),
    "a file too many, before the manifest": (
        lambda f: (f / "extra").write_text("x"),
        r"extra was added \(no list names it\)",
    ),
    "sizes that are none": (bad_size, NOT_READ),
    "a size that is too large": (
        in_manifest('"bytes": 10,', '"bytes": 11,'),
        "run.sh was changed in .*: it has 10 bytes, not 11",
    ),
    "a name that is no text": (in_manifest('"run.sh"', '"\\ud800"'), NOT_READ),
    "a name that clears the screen": (in_manifest('"small"', '"\\u001b[2J"'), NOT_READ),
    "a missing file": (lambda f: (f / "run.sh").unlink(), "run.sh is missing"),
    "no sums": (lambda f: (f / "SHA256SUMS").unlink(), "it has no SHA256SUMS"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "garbled sums": (garble, "SHA256SUMS of .* is damaged"),
    "another format": (other_format, "is of format 99"),
}


@pytest.mark.parametrize("packed", [None, "spoiled.tar.gz", "spoiled.zip"])
@pytest.mark.parametrize(("spoil", "match"), SPOILED.values(), ids=SPOILED)
def test_what_was_tampered_with(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], match: str, packed: str | None
) -> None:
    spoil(folder)
    package = folder
    if packed is not None:
        package = tmp_path / packed
        write_archive(folder, "small", package)
    with pytest.raises(FptqError, match=match):
        check_package(package)
    out = tmp_path / "out"
    with pytest.raises(FptqError, match=match):
        check_package(package, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def hostile_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member in ("small/ok", name):
            entry = tarfile.TarInfo(member)
            if member == name:
                entry.type, entry.linkname = kind, link
            content = b"x" if entry.isreg() else b""
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def hostile_zip(path: Path, name: str, mode: int = 0o100644) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small/ok", "x")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, "/etc/passwd")


OUTSIDE = [
    "../outside", "small/../../outside", "/outside", "small/./x", "small//x", "small/a\\b",
    "small/..", "..", "small/a\nb",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [hostile_tar, hostile_zip])
def test_a_path_that_leads_out(tmp_path: Path, make: Callable[..., None], name: str) -> None:
    package, out = tmp_path / "package", tmp_path / "a" / "out"
    make(package, name)
    with pytest.raises(FptqError, match=r"refused: .* leads out of its folder"):
        check_package(package, out)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    hostile_tar(tmp_path / "package", "small/bad", kind, "ok")
    with pytest.raises(FptqError, match=r"refused: 'small/bad' .* is a link or a device"):
        check_package(tmp_path / "package", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    hostile_zip(tmp_path / "package", "small/bad", 0o120777)
    with pytest.raises(FptqError, match=r"refused: 'small/bad' .* is a link or a device"):
        check_package(tmp_path / "package", tmp_path / "out")


def test_a_link_in_a_folder(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "run.sh", tmp_path / "run.sh")
    (folder / "run.sh").symlink_to(tmp_path / "run.sh")
    with pytest.raises(FptqError, match=r"refused: run\.sh is a link"):
        check_package(folder)


@pytest.mark.parametrize("make", [hostile_tar, hostile_zip])
@pytest.mark.parametrize(
    ("name", "match"),
    [("small/ok", "twice"), ("other/x", "lies beside the folder 'small'"), ("small", "no folder")],
)
def test_members_that_do_not_belong(
    tmp_path: Path, make: Callable[..., None], name: str, match: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of the name that comes twice
        make(tmp_path / "package", name)
    with pytest.raises(FptqError, match=match):
        check_package(tmp_path / "package")


def test_damaged_archives(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for name, spoiled in {
        "cut": content[: len(content) // 2],
        "text": b"hello, I am a text file",
        "empty": b"",
        "gzip of text": gzip.compress(b"hello" * 500),
    }.items():
        package = tmp_path / name
        package.write_bytes(spoiled)
        with pytest.raises(
            FptqError, match=r"is not a \.tar\.gz or \.zip, or is damaged|it has no"
        ):
            check_package(package)
    with pytest.raises(FptqError, match="no package at"):
        check_package(tmp_path / "absent")


def test_the_same_files_give_the_same_archive(archive: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # other times, and another order of entries
    for path in copy.rglob("*"):
        path.touch()
    again = tmp_path / "again" / archive.name
    again.parent.mkdir()
    write_archive(copy, "small", again)
    assert again.read_bytes() == archive.read_bytes()
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            assert {entry.date_time for entry in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    else:
        assert archive.read_bytes()[4:8] == bytes(4)  # gzip's own time
        with tarfile.open(archive) as packed_tar:
            assert {entry.mtime for entry in packed_tar} == {0}
