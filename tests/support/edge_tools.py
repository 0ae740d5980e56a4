"""What an edge package is used with: a compiler, an ONNX Runtime library, an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import onnxruntime
import pytest


def runtime_library() -> Path:
    """libonnxruntime.so of the installed wheel."""
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this onnxruntime has no shared library of its own")
    return found[0]


def opened(archive: Path, place: Path) -> Path:
    """Unpacked as the documentation says; the folder in it."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xzf", archive], cwd=place, check=True)
    (folder,) = place.iterdir()
    return folder


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive) as packed:
        return {entry.name: entry for entry in packed}


def compile_runner(package: Path, place: Path, *flags: str, compiler: str = "c++") -> Path:
    """Build the runner of an unpacked package; warnings are errors."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    place.mkdir(parents=True, exist_ok=True)
    sources = sorted((package / "runner").glob("*.cc"))
    warnings = ("-Wall", "-Wextra", "-Werror")
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-O1",
            *warnings,
            *flags,
            "-o",
            place / "fptq_run",
            *sources,
            "-ldl",
        ],
        check=True,
    )
    return place / "fptq_run"


def run_tokens(*arguments: object, code: int = 0) -> tuple[list[int], str]:
    """Tokens written, and what was said on stderr."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return [int(word) for word in done.stdout.split()], done.stderr


def smoke_test(package: Path) -> subprocess.CompletedProcess[str]:
    """A package's own test."""
    return subprocess.run(
        [package / "smoke_test.sh", runtime_library()],
        env={**os.environ, "CXXFLAGS": "-O0"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def fptq_run(runner: Path, model: Path, *arguments: object, code: int = 0) -> tuple[list[int], str]:
    """`run_tokens` of the runner with the usual options."""
    options = ("--onnxruntime", runtime_library(), "--model", model, "--threads", 1)
    return run_tokens(runner, *options, *arguments, code=code)
