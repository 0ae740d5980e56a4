"""A comparison as one HTML page with plots, no scripts and no files beside it."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from fptq_onnx.benchmarking.compare_recipes import ORIGINAL, Comparison, Row
from fptq_onnx.benchmarking.comparison_table import cells, measured
from fptq_onnx.benchmarking.label_placement import place_labels

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 380, 70, 50
_OURS, _OTHERS = "#c2410c", "#64748b"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #cbd5e1; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.ours { font-weight: 600; color: #c2410c; }
svg text { font: 12px system-ui, sans-serif; fill: #334155; }
figure { margin: 2rem 0; }
"""


def compare_page(comparison: Comparison) -> str:
    """The page's text."""
    header, *body = cells(comparison)
    rows = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
    for row, line in zip(comparison.rows, body, strict=True):
        mark = ' class="ours"' if row.name == "fptq" else ""
        rows.append(f"<tr{mark}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>")
    plots = [
        _figure("Accuracy over size: lower and further left is better", _scatter(comparison.rows)),
        _figure("Prefill, tokens per second", _bars(comparison.rows, lambda r: r.speed.prefill)),
        _figure("Decode, tokens per second", _bars(comparison.rows, lambda r: r.speed.decode)),
    ]
    title = f"fptq-onnx compare {html.escape(comparison.model)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{html.escape(measured(comparison))}. In brackets: times the original.</p>"
        f"<table>{''.join(rows)}</table>{''.join(plots)}</body></html>\n"
    )


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _svg(parts: Sequence[str], height: int) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _kl_of(row: Row) -> float | None:
    metrics = row.evaluation.perplexity
    kl = None if metrics is None or metrics.kl is None else metrics.kl.value
    return kl if kl is not None and kl > 0 and math.isfinite(kl) else None


def _scatter(rows: Sequence[Row]) -> str:
    """KL, logarithmic, over bytes."""
    points = [(row, kl) for row in rows if row.name != ORIGINAL and (kl := _kl_of(row)) is not None]
    if not points:
        return "<p>no KL was measured</p>"
    low = math.floor(math.log10(min(kl for _, kl in points)))
    high = math.ceil(math.log10(max(kl for _, kl in points)))
    high = max(high, low + 1)
    widest = max(row.bytes for row in rows)

    def x(size: float) -> float:
        return _LEFT + size / widest * (_WIDTH - _LEFT - 120)

    def y(kl: float) -> float:
        return 20 + (high - math.log10(kl)) / (high - low) * (_HEIGHT - _BOTTOM - 20)

    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<path d="M{_LEFT} 20V{bottom}H{_WIDTH - 20}" fill="none" stroke="#94a3b8"/>',
        _text(_WIDTH / 2, _HEIGHT - 10, "size (share of the original)", "middle"),
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        parts.append(_text(x(share * rows[0].bytes), bottom + 18, f"{share:g}", "middle"))
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - 20}" stroke="#e2e8f0"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"KL 1e{power}", "end"))
    places = [(x(row.bytes), y(kl)) for row, kl in points]
    labels = place_labels(places, [row.name for row, _ in points])
    for (row, _), (across, down), label in zip(points, places, labels, strict=True):
        color = _OURS if row.name == "fptq" else _OTHERS
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="5" fill="{color}"/>')
        parts.append(_text(label.x, label.y, row.name, label.anchor))
    return _svg(parts, _HEIGHT)


def _bars(rows: Sequence[Row], value_of: Callable[[Row], float | None]) -> str:
    values = [(row, value) for row in rows if (value := value_of(row)) is not None]
    if not values:
        return "<p>not measured: the model has no KV cache</p>"
    largest = max(value for _, value in values)
    parts = []
    for index, (row, value) in enumerate(values):
        top = 8 + 26 * index
        width = value / largest * (_WIDTH - 200)
        color = _OURS if row.name == "fptq" else _OTHERS
        parts.append(_text(110, top + 14, row.name, "end"))
        parts.append(f'<rect x="118" y="{top}" width="{width:.1f}" height="18" fill="{color}"/>')
        parts.append(_text(124 + width, top + 14, f"{value:.0f}"))
    return _svg(parts, 16 + 26 * len(values))
