"""Start the process that exports, show that it lives, and end it with ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.progress import human_bytes

_SECONDS_BETWEEN_LINES = 5.0


def run_worker(
    job: dict[str, str], scratch: Path, folder: Path, *, quiet: bool, verbose: bool
) -> dict[str, Any]:
    """Do an export job in a process of its own.

    Args:
        job: source, exporter, folder and reference, see `worker.export`.
        scratch: a folder for the files of this call.
        folder: where the export grows, to tell its size meanwhile.
        quiet: show no progress.
        verbose: let the exporter's own output through to stderr.

    Returns:
        What `worker.export` returned.

    Raises:
        FptqError: the export failed, or its process was killed.
    """
    job_file, result_file = scratch / "job.json", scratch / "result.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "fptq_onnx.exporting.worker"]
    worker = subprocess.Popen(
        [*command, str(job_file), str(result_file)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if verbose else subprocess.DEVNULL,
        stderr=None if verbose else subprocess.DEVNULL,
        start_new_session=True,  # so that what it starts can be ended with it
    )
    try:
        _wait(worker, folder, quiet=quiet)
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    if not result_file.is_file():
        why = "it was killed, perhaps for lack of memory" if worker.returncode < 0 else "--verbose"
        raise FptqError(f"the exporter ended without a result ({why}): see with --verbose")
    result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    if "error" in result:
        raise FptqError(result["error"])
    return result


def _wait(worker: subprocess.Popen[bytes], folder: Path, *, quiet: bool) -> None:
    started = time.monotonic()
    while True:
        try:
            worker.wait(_SECONDS_BETWEEN_LINES)
            return
        except subprocess.TimeoutExpired:
            if not quiet:
                written = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                seconds = time.monotonic() - started
                line = f"exporting: {seconds:.0f} s, {human_bytes(written)} written"
                print(line, file=sys.stderr, flush=True)
