"""A test that is not marked can start no process, and fixtures mark the tests that take them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.conversion_cache import ConversionCache

NOTHING = [sys.executable, "-c", ""]


def marks(request: pytest.FixtureRequest) -> set[str]:
    return {mark.name for mark in request.node.iter_markers()} & {"slow", "process"}


def test_an_unmarked_test_starts_no_process(request: pytest.FixtureRequest) -> None:
    assert not marks(request)
    for start in (
        lambda: subprocess.run(NOTHING, check=True),
        lambda: os.posix_spawn(sys.executable, NOTHING, dict(os.environ)),
        lambda: os.system("true"),
        os.fork,
    ):
        with pytest.raises(pytest.fail.Exception, match="needs the mark process"):
            start()


@pytest.mark.process
def test_a_marked_one_does() -> None:
    subprocess.run(NOTHING, check=True)


def test_git_may_be_asked() -> None:
    subprocess.run(["git", "--version"], check=False, capture_output=True)


@pytest.fixture
def through_another(conversions: ConversionCache, starts_processes: None) -> None:
    """What a conftest of a folder may define."""


def test_a_fixture_marks(request: pytest.FixtureRequest, through_another: None) -> None:
    assert marks(request) == {"slow", "process"}


def test_marks_that_nobody_knows_are_refused(request: pytest.FixtureRequest) -> None:
    assert request.config.option.strict_markers
    with pytest.raises(pytest.fail.Exception, match="'slwo' not found in `markers`"):
        _ = pytest.mark.slwo
