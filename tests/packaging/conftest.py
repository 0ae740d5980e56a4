"""The embedded model, converted once; and a package of it for the edge."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import MODEL, RANDOM_FEW, command
from support.conversion_cache import ConversionCache
from support.edge_tools import compile_runner, opened

from fptq_onnx.packaging.manifest import write_manifest

FAST = ("--recipe", "paper", "--calibration", "random", *RANDOM_FEW, "--embedding-bits", "8")


@pytest.fixture(scope="session")
def both(conversions: ConversionCache) -> Path:
    """Converted to custom and matmulnbits."""
    return conversions.command("story", MODEL, "--target", "custom,matmulnbits", *FAST).folder


@pytest.fixture(scope="session")
def custom(both: Path) -> Path:
    """The folder of target custom alone."""
    return both / "custom"


@pytest.fixture(scope="session")
def edge(custom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for this machine."""
    archive = tmp_path_factory.mktemp("edge") / "story.tar.gz"
    done = command("package", custom, "--for", "edge", "-o", archive)
    assert done.returncode == 0, done.stderr
    return archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small package."""
    made = tmp_path / "package"
    (made / "model").mkdir(parents=True)
    (made / "model" / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o755)
    write_manifest(made, {"name": "small", "for": "edge", "target": "linux-x86_64"})
    return made


@pytest.fixture(scope="session")
def package(edge: Path, tmp_path_factory: pytest.TempPathFactory, starts_processes: None) -> Path:
    return opened(edge, tmp_path_factory.mktemp("opened"))


@pytest.fixture(scope="session")
def runner(package: Path, tmp_path_factory: pytest.TempPathFactory, starts_processes: None) -> Path:
    return compile_runner(package, tmp_path_factory.mktemp("runner"))
