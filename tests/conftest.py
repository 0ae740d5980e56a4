"""Fixtures for all tests, and the marks. Helpers live in tests/support, imported as support.NAME.

Marks: `slow` is what takes more than two seconds or so, `process` what starts processes; `make
check` leaves both out. A test that takes the fixture `conversions` or `starts_processes`, itself or
through another fixture, carries the mark without being written so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.conversion_cache import ConversionCache, current_state
from support.process_guard import ProcessGuard

REPOSITORY = Path(__file__).resolve().parent.parent
MARK_OF_FIXTURE = {"conversions": "slow", "starts_processes": "process"}
# A background job of a shell is born with interrupts ignored, and its children after it: the
# commands that tests interrupt would not notice.
signal.signal(signal.SIGINT, signal.default_int_handler)
_guard = ProcessGuard()
_guard.install()


@pytest.hookimpl(tryfirst=True)  # before -m takes its choice
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they take."""
    for item in items:
        for name, mark in MARK_OF_FIXTURE.items():
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let the guard know which test may or may not start processes."""
    _guard.running = item
    try:
        return (yield)
    finally:
        _guard.running = None


@pytest.fixture(scope="session")
def conversions() -> Iterator[ConversionCache]:
    """Conversions that tests share; they are for reading, and checked for that in the end."""
    cache = ConversionCache(REPOSITORY / "build" / "test-cache", current_state())
    yield cache
    cache.check_unchanged()


@pytest.fixture(scope="session")
def starts_processes() -> None:
    """Taken by fixtures that start processes: the tests that use them carry the mark."""


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
