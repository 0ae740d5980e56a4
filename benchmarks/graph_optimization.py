"""How much faster graph optimization makes converted models, in prefill and decode.

    python benchmarks/graph_optimization.py EXPORT... --prefill 512 --depth 256 2048

Each export is converted twice (--recipe paper, random tokens: the speed does not depend on what the
weights become), then both run in turn, each in a process of its own, as `fptq-onnx run` runs them.
Prints a Markdown table of tokens per second, in brackets the median over rounds of the ratio within
a round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import onnxruntime

from fptq_onnx.benchmarking.benchmark import Result, bench_models, entries_of
from fptq_onnx.benchmarking.worker import Load
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.errors import FptqError
from fptq_onnx.scheme.config import PAPER

_FEW = 4  # calibration samples: any that the kernels can run with


def measure(export: Path, work: Path, load: Load, threads: int, rounds: int) -> Result:
    """Convert with and without, and time both; graph optimization is the first entry.

    Raises:
        FptqError: the export cannot be converted or run.
    """
    folders = [work / "with", work / "without"]
    for folder, tidy in zip(folders, (True, False), strict=True):
        convert(
            export, folder, samples=Samples("random", _FEW, 64), verify_samples=0, overwrite=True,
            config=replace(PAPER, graph_optimization=tidy), threads=threads,
        )  # fmt: skip
    return bench_models(entries_of(folders), load, threads=(threads,), rounds=rounds)


def cells(result: Result) -> list[str]:
    """'100.0 -> 120.0 (1.20x)' for each length of prefill and each depth."""
    found = []
    for line in result.lines():
        if line[1] in ("prefill", "decode"):
            after, before = (statistics.median(result.values(line, entry)) for entry in (0, 1))
            found.append(f"{before:.1f} -> {after:.1f} ({result.ratio(line, 1):.2f}x)")
    return found


def main() -> int:
    """The command of this module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depth", type=int, nargs="+", default=[256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load = Load((options.prefill,), tuple(options.depth))
    depths = [f"decode after {depth}" for depth in options.depth]
    print(f"ONNX Runtime {onnxruntime.__version__}, {platform.machine()}, tokens per second, "
          f"threads: {options.threads}\n")  # fmt: skip
    print(f"| export | {' | '.join([f'prefill {options.prefill}', *depths])} |")
    print(f"|{' --- |' * (2 + len(depths))}")
    try:
        for export in options.exports:
            with tempfile.TemporaryDirectory() as work:
                result = measure(export, Path(work), load, options.threads, options.rounds)
            row = [export.resolve().name, *cells(result)]
            print(f"| {' | '.join(row + ['-'] * (2 + len(depths) - len(row)))} |", flush=True)
    except FptqError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
