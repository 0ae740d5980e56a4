"""The embedded model, converted once; and a package of it for the edge."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import MODEL, RANDOM_FEW, command

FAST = ("--recipe", "paper", "--calibration", "random", *RANDOM_FEW, "--embedding-bits", "8")


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted to custom and matmulnbits."""
    output = tmp_path_factory.mktemp("converted") / "story"
    done = command("convert", MODEL, "-o", output, "--target", "custom,matmulnbits", *FAST)
    assert done.returncode == 0, done.stderr
    return output


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
