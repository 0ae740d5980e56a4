"""What loading 4-bit weights costs: our op against MatMulNBits, each in a fresh process.

    python benchmarks/load_memory.py

Both models have the same linears (by default 500 MB of packed codes) in external data. Prints the
time to make a session, the growth of memory that is not file cache, and their ratios. Runs take
turns and the medians are compared; the files are in the page cache for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kernel_models import Implementation, matmul_nbits, ours, write_model

from fptq_onnx.runtime import native_library as runtime

MEASURE = """
import json, sys, time
import onnxruntime as ort
from fptq_onnx.runtime import native_library as runtime

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime.register(options)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

first = session(sys.argv[1])  # what any first session costs
before, start = anonymous(), time.perf_counter()
second = session(sys.argv[2])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "bytes": anonymous() - before}))
"""


def main() -> int:
    """Write the models, measure, print."""
    parser = argparse.ArgumentParser(description="Session creation: time and memory.")
    parser.add_argument("--megabytes", type=int, default=500, help="packed 4-bit codes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    k = n = 4096
    copies = max(1, round(options.megabytes * 1e6 / (k * n / 2)))
    codes = copies * k * n // 2
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = write_model(ours("", 128), 64, 64, 1, folder / "small")
        models: dict[str, Path] = {}
        for item in (ours("", 128), matmul_nbits(128), matmul_nbits(32)):
            title = _title(item)
            models[title] = write_model(item, k, n, copies, folder / title.replace(" ", "-"))
            found[title] = []
        for _ in range(options.rounds):
            for title, path in models.items():
                found[title].append(_measure(small, path))
    print(f"{copies} linears of {k} x {n}, {codes / 1e6:.0f} MB of packed codes")
    rival = statistics.median(row["seconds"] for row in found["MatMulNBits 128"])
    for title, rows in found.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        memory = statistics.median(row["bytes"] for row in rows)
        print(
            f"{title:<16} session in {seconds * 1e3:7.1f} ms ({seconds / rival:.3f}x MatMulNBits "
            f"128), memory {memory / 1e6:7.1f} MB ({memory / codes:.1%} of the codes)"
        )
    return 0


def _title(item: Implementation) -> str:
    return "ours 128" if item.name.startswith("ours") else item.name


def _measure(small: Path, model: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, model],
        env={**os.environ, "FPTQ_ONNX_LIBRARY": str(runtime.library_path())},
        cwd=Path(runtime.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
