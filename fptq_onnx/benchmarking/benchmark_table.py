"""A benchmark as a Markdown table: medians, and in brackets how many times the first is faster."""

from __future__ import annotations

import statistics

from fptq_onnx.benchmarking.benchmark import Result
from fptq_onnx.progress import human_bytes


def bench_table(result: Result) -> list[str]:
    """Markdown lines, a column for each entry.

    A ratio is the first entry's value over the column's, the median over rounds of the ratio
    within a round: above 1 the first is faster, or takes longer to load and more memory.
    """
    header = ["threads", "what", *result.names]
    lines = [_row(header), _row(["---"] * len(header))]
    for line in result.lines():
        cells = [str(line[0] or "default"), _what(line[1], line[2])]
        for index in range(len(result.names)):
            values = result.values(line, index)
            ratio = result.ratio(line, index) if index else None
            shown = _shown(line[1], statistics.median(values)) if values else "-"
            cells.append(shown if ratio is None else f"{shown} ({ratio:.2f}x)")
        lines.append(_row(cells))
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _what(kind: str, key: str) -> str:
    if kind == "prefill":
        return f"prefill {key}, tokens/s"
    if kind == "decode":
        batch, depth = key.split("x")
        return f"decode after {depth}, tokens/s" + ("" if batch == "1" else f", batch {batch}")
    return "load" if kind == "load" else "peak memory"


def _shown(kind: str, value: float) -> str:
    if kind == "load":
        return f"{value:.2f} s"
    return human_bytes(int(value)) if kind == "memory" else f"{value:.1f}"
