"""Fixtures of the native tests: every kernel that this CPU runs, and activations."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import matmul_nodes


@pytest.fixture(scope="session")
def op() -> ModuleType:
    """One-node models: the functions of support.matmul_nodes."""
    return matmul_nodes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `each_kernel` once for every kernel that this CPU runs."""
    if "each_kernel" in metafunc.fixturenames:
        kernels = matmul_nodes.kernels()[1]
        metafunc.parametrize("each_kernel", kernels[::-1], indirect=True)


@pytest.fixture
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces the kernel that the test is run for."""
    name: str = request.param
    monkeypatch.setenv("FPTQ_FORCE_KERNEL", name)
    return name


Activations = Callable[..., NDArray[Any]]


@pytest.fixture
def activations() -> Activations:
    """activations(shape, dtype): normal values with some large ones, the same every time."""

    def make(shape: tuple[int, ...], dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
        rng = np.random.default_rng(len(shape) + sum(shape))
        x = rng.normal(size=shape)
        x[rng.random(shape) < 0.02] *= 20
        return x.astype(dtype)

    return make
