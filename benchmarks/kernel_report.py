"""Tables of what benchmarks/kernels.py measured, and how it compares with what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def table_lines(rows: Sequence[Row]) -> list[str]:
    """One line per shape and number of rows, one column per implementation, in GOPS."""
    names = list(dict.fromkeys(row["impl"] for row in rows))
    width = max((len(name) for name in names), default=0)
    points = list(dict.fromkeys((r["threads"], r["K"], r["N"], r["M"]) for r in rows))
    found = {(r["impl"], r["threads"], r["K"], r["N"], r["M"]): r for r in rows}
    lines = []
    for threads, k, n in dict.fromkeys(point[:3] for point in points):
        counts = [point[3] for point in points if point[:3] == (threads, k, n)]
        lines.append(f"\nK={k} N={n}, {threads} thread(s), GOPS (GB/s of weights) for M =")
        lines.append(" " * width + "".join(f"{m:>16}" for m in counts))
        for name in names:
            cells = [found.get((name, threads, k, n, m)) for m in counts]
            text = "".join(
                f"{c['gops']:>8.0f} ({c['gbps']:>4.1f})".rjust(16) if c else " " * 16 for c in cells
            )
            lines.append(f"{name:<{width}}{text}")
    return lines


def check_lines(rows: Sequence[Row], limits: Mapping[str, float]) -> list[str]:
    """The worst ratio over the shapes, kernel by kernel, beside the bar."""
    lines = ["", "worst ratio over the shapes (bar), one thread, block 128 symmetric per-token"]
    one = [row for row in rows if row["threads"] == 1]
    for isa in dict.fromkeys(row["isa"] for row in one if row["isa"]):
        ours = f"ours {isa} 128 per-token"
        for label, m, rival, bar in (
            ("of its peak, M >= 128", 128, None, 0.75 if isa == "avx2" else 0.88),
            ("of its peak, M = 16", 16, None, 0.80),
            ("times W8A8 static, M >= 128", 128, "W8A8 static", 0.95),
            ("times MatMulNBits 128, M >= 128", 128, "MatMulNBits 128", 2.0),
            ("times MatMulNBits 32, M >= 128", 128, "MatMulNBits 32", 2.9),
            ("times MatMulNBits 128, M = 4", 4, "MatMulNBits 128", 1.5),
            ("times MatMulNBits 128, M = 1", 1, "MatMulNBits 128", 1.15),
            ("times MatMulNBits 32, M = 1", 1, "MatMulNBits 32", 1.5),
            ("times fp32, M = 1", 1, "fp32", 1.0),
            ("times fp32, M >= 128", 128, "fp32", 1.0),
        ):
            ratios = _ratios(one, ours, rival, m, limits.get(isa))
            if ratios:
                verdict = "met" if min(ratios) >= bar else "NOT met"
                lines.append(f"{isa:<12} {min(ratios):6.2f} {label} ({bar:.2f}: {verdict})")
        reads = [row["gbps"] for row in one if row["impl"] == ours and row["M"] == 1]
        if reads and limits.get("read"):
            share = min(reads) / limits["read"]
            verdict = "met" if share >= 0.9 else "NOT met"
            lines.append(f"{isa:<12} {share:6.2f} of the read bandwidth, M = 1 (0.90: {verdict})")
        scaling = _scaling(rows, ours)
        if scaling:
            verdict = "met" if min(scaling) >= 1.8 else "NOT met"
            lines.append(
                f"{isa:<12} {min(scaling):6.2f} times one thread with two, M >= 128 "
                f"(1.80: {verdict})"
            )
    return lines


def _scaling(rows: Sequence[Row], ours: str) -> list[float]:
    mine = {(r["threads"], r["K"], r["N"], r["M"]): r["gops"] for r in rows if r["impl"] == ours}
    return [
        gops / mine[1, k, n, m]
        for (threads, k, n, m), gops in mine.items()
        if threads == 2 and m >= 128 and (1, k, n, m) in mine
    ]


def _ratios(
    rows: Sequence[Row], ours: str, rival: str | None, m: int, peak: float | None
) -> list[float]:
    def at(name: str) -> dict[tuple[int, int, int], float]:
        return {
            (row["K"], row["N"], row["M"]): row["gops"]
            for row in rows
            if row["impl"] == name and (row["M"] == m or (m >= 128 and row["M"] > m))
        }

    mine = at(ours)
    if rival is None:
        return [gops / peak for gops in mine.values()] if peak else []
    theirs = at(rival)
    return [gops / theirs[point] for point, gops in mine.items() if point in theirs]
