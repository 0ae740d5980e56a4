"""Our kernels against stock ONNX Runtime and the machine's limits, interleaved in one run.

    make bench-kernels           # builds build/native/fptq_machine_limits and runs this

For up to 16 rows the weights cycle through enough copies to come from memory, as in a model. Every
round runs every implementation once; medians and minima over the rounds are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from kernel_models import Implementation, ours, session, stock
from kernel_report import check_lines, table_lines

SHAPES = [(4096, 4096), (4096, 11008), (11008, 4096), (2048, 5632)]
ROWS = [1, 4, 16, 128, 512]
FEW_ROWS = 16
KERNELS = ["amx", "avx512vnni", "avxvnni", "avx2", "neon_i8mm", "neon_dotprod"]


def main() -> int:
    """Measure and print; 0 unless something cannot be measured at all."""
    parser = argparse.ArgumentParser(description="Kernels against stock ONNX Runtime.")
    parser.add_argument("-o", "--output", type=Path, help="write the rows as JSON")
    parser.add_argument("--limits", type=Path, help="the built fptq_machine_limits")
    parser.add_argument("--shapes", default="", help="K,N K,N ... (four of LLaMA's size)")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="numbers of rows")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--seconds", type=float, default=1.0, help="per implementation and point")
    parser.add_argument("--memory-mb", type=int, default=256, help="4-bit weights for few rows")
    parser.add_argument("--only", default="", help="only implementations this matches (regex)")
    options = parser.parse_args()
    shapes = [tuple(map(int, text.split(","))) for text in options.shapes.split()] or SHAPES
    limits: dict[str, float] = {}
    if options.limits is not None:
        done = subprocess.run([options.limits], capture_output=True, text=True, check=True)
        limits = json.loads(done.stdout)
        print("limits", limits, flush=True)
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        for k, n in shapes:
            for few in (True, False):
                points = [m for m in options.rows if (m <= FEW_ROWS) == few]
                if points:
                    copies = max(1, options.memory_mb * 2 * 10**6 // (k * n)) if few else 1
                    rows += measure(k, n, points, copies, threads, options, limits)
    about = {
        "onnxruntime": ort.__version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    if options.output is not None:
        text = json.dumps({"about": about, "limits": limits, "rows": rows}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    print("\n".join(table_lines(rows)))
    print("\n".join(check_lines(rows, limits)))
    return 0


def usable(folder: Path) -> list[str]:
    """The kernels this CPU and library have."""
    found = []
    for isa in KERNELS:
        try:
            session(ours(isa, 32), 64, 64, 1, 1, folder)
        except Exception as error:
            if "FPTQ_FORCE_KERNEL" not in str(error):
                raise
        else:
            found.append(isa)
    return found


def implementations(kernels: list[str]) -> list[Implementation]:
    """Every kernel at block 128; the best AVX-512 or Arm one in all its variants; stock."""
    first = [ours(isa, 128) for isa in kernels]
    several = [isa for isa in ("avx512vnni", "amx", "neon_i8mm") if isa in kernels] or kernels[:1]
    for isa in several:
        first += [
            ours(isa, 128, static=True),
            ours(isa, 128, symmetric=False),
            ours(isa, 32),
        ]
    return first + stock()


def measure(
    k: int,
    n: int,
    points: list[int],
    copies: int,
    threads: int,
    options: argparse.Namespace,
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    """Rows of the result for one shape; all implementations take turns."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sessions = {}
        for item in implementations(usable(folder)):
            if not re.search(options.only, item.name):
                continue
            # float32 needs eight times the memory and is far out of cache with fewer copies.
            count = max(1, copies // 4) if item.name == "fp32" else copies
            sessions[item] = (session(item, k, n, count, threads, folder), count)
        rng = np.random.default_rng(1)
        for m in points:
            x = rng.standard_normal((m, k)).astype(np.float32)
            bindings = {}
            for item, (runner, count) in sessions.items():
                binding = runner.io_binding()
                binding.bind_cpu_input("A", x)
                for copy in range(count):
                    binding.bind_output(f"Y{copy}")
                runner.run_with_iobinding(binding)
                bindings[item] = binding
            times: dict[Implementation, list[float]] = {item: [] for item in sessions}
            deadline = time.perf_counter() + options.seconds * len(sessions)
            while time.perf_counter() < deadline or len(times[item]) < 5:
                for item, (runner, count) in sessions.items():
                    start = time.perf_counter()
                    runner.run_with_iobinding(bindings[item])
                    times[item].append((time.perf_counter() - start) / count)
            print(f"K={k} N={n} M={m} threads={threads}: {len(times[item])} rounds", flush=True)
            for item, seconds in times.items():
                median, best = float(np.median(seconds)), float(np.min(seconds))
                gops = 2 * m * k * n / median * 1e-9
                # The peak of what the rows' kernel is made of; stock runs on VNNI here as well.
                peak = limits.get(item.isa or "avx512vnni", 0.0) * threads
                rows.append(
                    {
                        "impl": item.name,
                        "isa": item.isa,
                        "threads": threads,
                        "M": m,
                        "K": k,
                        "N": n,
                        "block": item.block,
                        "ms_median": median * 1e3,
                        "ms_min": best * 1e3,
                        "gops": gops,
                        "gbps": item.bytes_per_weight * k * n / median * 1e-9,
                        "peak_share": gops / peak if peak else None,
                    }
                )
    return rows


if __name__ == "__main__":
    sys.exit(main())
