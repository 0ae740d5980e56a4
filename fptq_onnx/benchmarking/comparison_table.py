"""A comparison as one Markdown table, every metric beside the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fptq_onnx.benchmarking.compare_recipes import Comparison, Row
from fptq_onnx.evaluation.standard_errors import Estimate
from fptq_onnx.progress import human_bytes

Cell = Callable[[Row, Row], str]  # of a row and the original's


def compare_table(comparison: Comparison) -> list[str]:
    """Markdown lines: how it was measured, then the table."""
    header, *rows = cells(comparison)
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return [measured(comparison), "", *lines]


def measured(comparison: Comparison) -> str:
    """One line: data and settings."""
    evaluation = comparison.rows[0].evaluation
    windows = "" if evaluation.perplexity is None else f"{evaluation.perplexity.windows} windows, "
    passages = (
        "" if evaluation.lambada is None else f"{evaluation.lambada.passages} LAMBADA passages, "
    )
    threads = f"{comparison.threads} threads" if comparison.threads else "default threads"
    return (
        f"{comparison.data}: {windows}{passages}prefill of {comparison.prefill} tokens and "
        f"{comparison.decode} decode steps, {threads}, medians of {comparison.rounds} rounds in "
        f"turn"
    )


def _perplexity(row: Row, first: Row) -> str:
    metrics = row.evaluation.perplexity
    return "-" if metrics is None else f"{metrics.perplexity.value:.3f}"


def _kl(row: Row, first: Row) -> str:
    metrics = row.evaluation.perplexity
    return _with_error(None if metrics is None else metrics.kl, 5)


def _top1(row: Row, first: Row) -> str:
    metrics = row.evaluation.perplexity
    return _with_error(None if metrics is None else metrics.top1, 4)


def _lambada(row: Row, first: Row) -> str:
    metrics = row.evaluation.lambada
    return _with_error(None if metrics is None else metrics.accuracy, 3)


def _with_error(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return "-"
    error = estimate.standard_error
    return f"{estimate.value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _times(value: float | None, reference: float | None, shown: str) -> str:
    if value is None or not reference:
        return "-"
    return f"{shown} ({value / reference:.2f}x)"


def _rate(row: Row, first: Row, name: str) -> str:
    value = getattr(row.speed, name)
    return "-" if value is None else _times(value, getattr(first.speed, name), f"{value:.0f}")


COLUMNS: dict[str, Cell] = {
    "model": lambda row, first: row.name,
    "precision": lambda row, first: row.precision,
    "bits per weight": lambda row, first: f"{row.bits_per_weight:.2f}",
    "perplexity": _perplexity,
    "KL (nats)": _kl,
    "top-1": _top1,
    "LAMBADA": _lambada,
    "size": lambda row, first: _times(row.bytes, first.bytes, human_bytes(row.bytes)),
    "peak memory": lambda row, first: _times(
        row.speed.peak_bytes, first.speed.peak_bytes, human_bytes(row.speed.peak_bytes)
    ),
    "prefill tokens/s": lambda row, first: _rate(row, first, "prefill"),
    "decode tokens/s": lambda row, first: _rate(row, first, "decode"),
}


def cells(comparison: Comparison) -> Sequence[Sequence[str]]:
    """The table's cells, header first."""
    first = comparison.rows[0]
    body = [[cell(row, first) for cell in COLUMNS.values()] for row in comparison.rows]
    return [[*COLUMNS], *body]
