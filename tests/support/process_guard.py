"""Tests that start processes carry the mark `process`; those that do not may start none."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pytest

STARTING = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec"}
# git: the layout tests ask it for the list of files, and the rest of them is fast. The others are
# what libraries ask of the machine when they are imported.
ALLOWED = {"git", "ldconfig", "lscpu", "uname"}


class ProcessGuard:
    """Fails a test without the mark at the moment it starts a process.

    running: the test that runs, None between tests.
    """

    def __init__(self) -> None:
        self.running: pytest.Item | None = None

    def install(self) -> None:
        """From here on; Python has no way to take an audit hook out again."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Sequence[object]) -> None:
        if event not in STARTING or self.running is None:
            return
        if self.running.get_closest_marker("process"):
            return
        started = str(arguments[0]) if arguments else event
        if os.path.basename(started) in ALLOWED:
            return
        pytest.fail(f"a test that starts a process ({started}) needs the mark process")
