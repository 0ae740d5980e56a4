"""Fixtures for all tests. Helpers live in tests/support, imported as support.NAME."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# A background job of a shell is born with interrupts ignored, and its children after it: the
# commands that tests interrupt would not notice.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(20231108)


@pytest.fixture
def shared_exports() -> Path:
    """The folder of real exports; the test is skipped where it is absent."""
    root = Path(os.environ.get("FPTQ_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "onnx").is_dir():
        pytest.skip(f"no real exports at {root} (set FPTQ_SHARED_DATA)")
    return root / "onnx"
