"""Which kernels the other tests here could try."""

from __future__ import annotations

import pytest
from support.matmul_nodes import kernels


def test_every_kernel_of_the_library_is_tested_here() -> None:
    """One skip that names those which this CPU lacks, rather than one for each test of each."""
    known, runnable = kernels()
    assert "scalar" in runnable and set(runnable) <= set(known)
    if lacking := [name for name in known if name not in runnable]:
        pytest.skip(f"this CPU lacks {', '.join(lacking)}")
