"""The picture and the table of docs/performance.md from what benchmarks/kernels.py measured.

    python benchmarks/kernel_picture.py build/kernels.json docs/kernels.svg

Prints a Markdown table (GOPS, each beside MatMulNBits with the same blocks) and draws a roofline:
GOPS over the number of rows, with the machine's read bandwidth and its int8 peaks as roofs.
Needs matplotlib (`pip install '.[bench]'`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

# Implementation -> (label, colour, marker): ours in warm colours, stock in cold ones.
DRAWN = {
    "ours amx 128 per-token": ("fptq, AMX", "#b2182b", "o"),
    "ours avx512vnni 128 per-token": ("fptq, AVX512-VNNI", "#ef6548", "o"),
    "ours avx2 128 per-token": ("fptq, AVX2", "#fdbb84", "o"),
    "W8A8 static": ("ONNX Runtime W8A8", "#225ea8", "s"),
    "MatMulNBits 128": ("MatMulNBits, block 128", "#41b6c4", "s"),
    "MatMulNBits 32": ("MatMulNBits, block 32", "#7fcdbb", "s"),
    "fp32": ("fp32", "#737373", "s"),
}


def main() -> int:
    """Read the JSON, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description="Table and roofline of a kernel benchmark.")
    parser.add_argument("json", type=Path, help="written by benchmarks/kernels.py")
    parser.add_argument("svg", type=Path, nargs="?", help="the picture to write")
    parser.add_argument("--shape", default="4096,4096", help="K,N")
    options = parser.parse_args()
    data = json.loads(options.json.read_text(encoding="utf-8"))
    k, n = map(int, options.shape.split(","))
    rows = select(data["rows"], k, n)
    if not rows:
        parser.error(f"{options.json} has no rows of one thread with K={k} and N={n}")
    print("\n".join(markdown_lines(rows)))
    if options.svg is not None:
        draw(rows, data["limits"], f"K = {k}, N = {n}, one thread", options.svg)
    return 0


def select(rows: Sequence[Row], k: int, n: int) -> list[Row]:
    """The rows of one shape and one thread that are drawn."""
    return [
        row
        for row in rows
        if row["threads"] == 1 and (row["K"], row["N"]) == (k, n) and row["impl"] in DRAWN
    ]


def markdown_lines(rows: Sequence[Row]) -> list[str]:
    """GOPS by implementation and number of rows; in brackets times MatMulNBits block 128."""
    counts = sorted({row["M"] for row in rows})
    found = {(row["impl"], row["M"]): row["gops"] for row in rows}
    lines = [
        "| GOPS | " + " | ".join(f"{m} row{'s' if m > 1 else ''}" for m in counts) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for name, (label, _, _) in DRAWN.items():
        cells = [_cell(found.get((name, m)), found.get(("MatMulNBits 128", m))) for m in counts]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _cell(gops: float | None, rival: float | None) -> str:
    if gops is None:
        return ""
    return f"{gops:.0f}" if not rival else f"{gops:.0f} ({gops / rival:.2f}x)"


def draw(rows: Sequence[Row], limits: Mapping[str, float], title: str, path: Path) -> None:
    """The roofline, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fptq"  # the same input gives the same file
    import matplotlib.pyplot as plt

    counts = sorted({row["M"] for row in rows})
    picture, axes = plt.subplots(figsize=(8, 5))
    for name, (label, colour, marker) in DRAWN.items():
        points = sorted((row["M"], row["gops"]) for row in rows if row["impl"] == name)
        if points:
            m, gops = zip(*points, strict=True)
            axes.plot(m, gops, marker=marker, color=colour, label=label)
    if limits.get("read"):
        bytes_per_weight = 0.5 + 4 / 128
        roof = [2 * m * limits["read"] / bytes_per_weight for m in counts]
        axes.plot(counts, roof, ":", color="black", label="4-bit weights at read bandwidth")
    for isa, text in (("amx", "AMX peak"), ("avx512vnni", "vpdpbusd peak")):
        if limits.get(isa):
            axes.axhline(limits[isa], linestyle="--", linewidth=0.8, color="black")
            axes.annotate(text, (counts[0], limits[isa]), va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="rows (tokens at once)", ylabel="GOPS", title=title)
    axes.set_xticks(counts, [str(m) for m in counts])
    axes.minorticks_off()
    axes.set_ylim(top=1.5 * max(limits.get("amx", 0.0), *(row["gops"] for row in rows)))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    picture.savefig(path, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
