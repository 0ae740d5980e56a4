from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.packaging.library_file import (
    TARGETS,
    chosen_target,
    copy_library,
    host_target,
    needed_glibc,
)
from fptq_onnx.runtime.native_library import LIBRARY_NAME, library_path

HOST = host_target()
OTHER = next(target for target in TARGETS if target != HOST)
pytestmark = pytest.mark.skipif(HOST is None, reason="no package is made for this kind of machine")


def test_this_machines_own(tmp_path: Path) -> None:
    place = copy_library(HOST, None, tmp_path)
    assert place.name == LIBRARY_NAME
    assert place.read_bytes() == library_path().read_bytes()
    assert place.stat().st_mode & 0o777 == 0o755


def test_out_of_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "fptq_onnx-0.1.0-py3-none-linux.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library_path(), f"fptq_onnx/lib/{LIBRARY_NAME}")
    out = tmp_path / "out"
    out.mkdir()
    assert copy_library(HOST, wheel, out).read_bytes() == library_path().read_bytes()


def test_none_for_another_machine(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=f"no library for {OTHER}: give --library .* make library"):
        copy_library(OTHER, None, tmp_path)


def test_built_for_another_machine(tmp_path: Path) -> None:
    with pytest.raises(FptqError, match=f"was built for {HOST}, not for {OTHER}"):
        copy_library(OTHER, library_path(), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.so", b"hello", "is not a custom-op library"),
        ("a.so", b"\x7fELF" + bytes(100), "is not a custom-op library"),
        ("a.whl", b"hello", "is not a wheel"),
        ("absent", None, "no library at"),
    ],
)
def test_what_is_no_library(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    given = tmp_path / name
    if content is not None:
        given.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FptqError, match=match):
        copy_library(HOST, given, out)


def test_a_wheel_without_a_library(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(FptqError, match="not a wheel of fptq-onnx with a library"):
        copy_library(HOST, wheel, tmp_path)


def test_targets() -> None:
    assert chosen_target(None) == HOST
    assert chosen_target(OTHER) == OTHER
    with pytest.raises(FptqError, match="unknown target 'windows': use linux-x86_64 or"):
        chosen_target("windows")


def test_glibc_is_the_newest_asked_for(tmp_path: Path) -> None:
    library = tmp_path / "a.so"
    library.write_bytes(b"\0GLIBC_2.4\0GLIBC_2.14\0GLIBC_2.2.5\0")
    assert needed_glibc(library) == "2.14"
    library.write_bytes(b"")
    assert needed_glibc(library) is None
