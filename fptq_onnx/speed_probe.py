"""How fast a model runs and what memory that takes, measured in a process of its own.

python -m fptq_onnx.speed_probe MODEL --prefill 128 --decode 32 --threads 1
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fptq_onnx.errors import FptqError

_PREFILLS = 3  # timed after one that warms up


@dataclass(frozen=True)
class Speed:
    """One measurement.

    load_seconds: from the file to a session.
    prefill: tokens per second of a prompt.
    decode: tokens per second after it, one at a time; None for a model without a KV cache.
    peak_bytes: resident memory of the process at its largest, Python and ONNX Runtime included.
    """

    load_seconds: float
    prefill: float
    decode: float | None
    peak_bytes: int


def probe(model: Path, prefill: int, decode: int, threads: int) -> Speed:
    """Measure in this process.

    Args:
        model: a decoder: a .onnx file or a folder with one.
        prefill: tokens of the prompt; with `decode` within the model's context.
        decode: tokens after it.
        threads: intra-op threads, 0 lets ONNX Runtime choose.

    Raises:
        FptqError: see open_decoder.
    """
    from fptq_onnx.decoder import open_decoder

    started = time.perf_counter()
    decoder = open_decoder(model, threads=threads)
    loaded = time.perf_counter() - started
    ids = np.random.default_rng(0).integers(0, decoder.io.vocab_size or 100, (1, prefill))
    prefills = []
    for _ in range(1 + _PREFILLS):
        started = time.perf_counter()
        step = decoder.forward(ids)
        prefills.append(time.perf_counter() - started)
    rate = None
    if decoder.io.has_cache:
        times = []
        for _ in range(decode):
            started = time.perf_counter()
            step = decoder.forward(ids[:, :1], step.cache)
            times.append(time.perf_counter() - started)
        rate = 1 / statistics.median(times)
    return Speed(loaded, prefill / statistics.median(prefills[1:]), rate, peak_bytes())


def peak_bytes() -> int:
    """Resident memory of this process at its largest so far, bytes."""
    # ru_maxrss begins with what the parent process had when this one was started.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def probe_apart(model: Path, prefill: int, decode: int, threads: int) -> Speed:
    """Measure in a new process, so that memory is the model's and nothing else's.

    Raises:
        FptqError: the process failed, with what it said.
    """
    command = [sys.executable, "-m", "fptq_onnx.speed_probe", str(model)]
    numbers = ["--prefill", str(prefill), "--decode", str(decode), "--threads", str(threads)]
    return Speed(**run_apart([*command, *numbers], str(model)))


def run_apart(command: Sequence[str], name: str) -> dict[str, Any]:
    """Run a command that prints figures as JSON, its last line.

    Raises:
        FptqError: it failed, with what it said of what is measured.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FptqError(f"cannot measure {name}: {last}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--prefill", type=int, required=True)
    parser.add_argument("--decode", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    try:
        found = probe(options.model, options.prefill, options.decode, options.threads)
    except FptqError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
