"""What every measurement in a process of its own needs: running one, and its memory."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError


def peak_bytes() -> int:
    """Resident memory of this process at its largest so far, bytes."""
    # ru_maxrss begins with what the parent process had when this one was started.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_apart(command: Sequence[str], name: str) -> dict[str, Any]:
    """Run a command that prints metrics as JSON, its last line.

    Raises:
        FptqError: it failed, with what it said of what is measured.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FptqError(f"cannot measure {name}: {last}")
    metrics: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return metrics
