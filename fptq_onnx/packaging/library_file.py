"""The custom-op library built for a named target: this machine's own, or one that is given."""

from __future__ import annotations

import platform
import re
import shutil
import zipfile
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.runtime.native_library import LIBRARY_NAME, library_path

# The machine field of an ELF header (System V ABI, and its supplement for Arm).
_MACHINES = {"linux-x86_64": 62, "linux-aarch64": 183}
TARGETS = tuple(_MACHINES)
_IN_WHEEL = f"fptq_onnx/lib/{LIBRARY_NAME}"
_ENTRY_POINT = b"RegisterCustomOps"


def host_target() -> str | None:
    """The target that this machine is, None if it is none of TARGETS."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    name = f"{platform.system().lower()}-{machine}"
    return name if name in _MACHINES else None


def chosen_target(target: str | None) -> str:
    """The target asked for, by default this machine.

    Raises:
        FptqError: there is none of that name.
    """
    chosen = target or host_target()
    if chosen is None:
        raise FptqError(f"give --target: {' or '.join(TARGETS)}")
    if chosen not in _MACHINES:
        raise FptqError(f"unknown target {chosen!r}: use {' or '.join(TARGETS)}")
    return chosen


def copy_library(target: str, given: Path | None, folder: Path) -> Path:
    """Put the library for a target into a folder.

    Args:
        target: one of TARGETS.
        given: a library, or a wheel of fptq-onnx that holds one; by default this installation's.
        folder: exists.

    Returns:
        The file written.

    Raises:
        FptqError: none is there, or it was built for another machine.
        OSError: it cannot be written.
    """
    place = folder / LIBRARY_NAME
    if given is None and target != host_target():
        raise FptqError(
            f"this installation has no library for {target}: give --library FILE, a wheel for "
            f"{target} or a library built by CMake (in a checkout: make library-aarch64)"
        )
    source = library_path() if given is None else given
    if not source.is_file():
        raise FptqError(f"no library at {source}: correct --library")
    if source.suffix == ".whl":
        _from_wheel(source, place)
    else:
        shutil.copyfile(source, place)
    place.chmod(0o755)
    _check(place, target, source)
    return place


def needed_glibc(library: Path) -> str | None:
    """The newest version of the C library that a library asks for, such as "2.34"."""
    found = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", library.read_bytes())
    versions = sorted((int(major), int(minor)) for major, minor in found)
    return "{}.{}".format(*versions[-1]) if versions else None


def _from_wheel(wheel: Path, place: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_IN_WHEEL) as source:
            with open(place, "wb") as file:
                shutil.copyfileobj(source, file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FptqError(f"{wheel} is not a wheel of fptq-onnx with a library in it") from error


def _check(library: Path, target: str, source: Path) -> None:
    content = library.read_bytes()
    machine = int.from_bytes(content[18:20], "little")
    if content[:4] != b"\x7fELF" or _ENTRY_POINT not in content:
        raise FptqError(f"{source} is not a custom-op library of fptq-onnx for Linux")
    if machine != _MACHINES[target]:
        names = {number: name for name, number in _MACHINES.items()}
        built = names.get(machine, f"another machine (ELF {machine})")
        raise FptqError(f"{source} was built for {built}, not for {target}: correct --library")
