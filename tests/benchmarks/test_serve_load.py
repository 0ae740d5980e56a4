"""The load test, for a few seconds; benchmarks/serve_load.py alone runs it for minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import MODEL

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


def test_no_text_is_wrong_and_nothing_is_left_over() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, MODEL, "--clients", "6", "--seconds", "4", "--idle", "60",
         "--max-running", "4"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    row = dict(re.findall(r"^\| (.+?) \| (.+) \|$", done.stdout, re.MULTILINE))
    assert int(row["answers compared"]) > 6
    assert int(row["left in the middle"]) > 0
    assert row["wrong"] == "0"
