"""What a conversion did, as a record for machines (report.json) and a few lines for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fptq_onnx.graph.linears.linears import IN_SUBGRAPH, LinearScan
from fptq_onnx.graph.linears.roles import Block
from fptq_onnx.graph.linears.weights_in_other_ops import CONVOLUTIONS
from fptq_onnx.scheme.plan import (
    LAE_STATIC,
    PER_TOKEN,
    SKIP,
    STATIC,
    STAYS,
    WEIGHT_ONLY,
    LinearPlan,
    Plan,
)

FORMAT = "fptq-report-2"
SCHEME_NAMES = {
    STATIC: "static",
    LAE_STATIC: "equalized (LAE) + static",
    PER_TOKEN: "per-token dynamic",
    WEIGHT_ONLY: "weights only",
    SKIP: "float (skip)",
}


@dataclass(frozen=True)
class Report:
    """Everything worth keeping about one converted model.

    target: custom, matmulnbits, qdq, or float for an equalized but unquantized model.
    source: path, bytes and sha256 of the files converted.
    options: what was asked for.
    linears, matmul_like, others: coverage, with the reason for each look-alike left alone.
    per_linear: of each linear, in graph order: name, path, role, layer, scheme, weight_bits.
    schemes: number of linears per scheme.
    folded: norms that took an equalization.
    bits_per_weight: average over all linears' weights, scales and zero points included, floats as
        they are stored.
    bytes_before, bytes_after: model and external data on disk.
    verification: comparison with the original, empty when it was switched off.
    notes: what a user should know, one sentence each.
    stays_float: name, kind and bytes of each tensor that keeps its floats, the largest first; those
        under 1 KB are left out.
    errors: SQNR of each linear's input, weight and output in decibels, where they were measured.
    """

    version: str
    target: str
    source: Mapping[str, Any]
    options: Mapping[str, Any]
    linears: int
    matmul_like: int
    others: tuple[Mapping[str, str], ...]
    schemes: Mapping[str, int]
    folded: tuple[str, ...]
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    verification: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    errors: tuple[Mapping[str, object], ...] = ()
    per_linear: tuple[Mapping[str, object], ...] = ()
    stays_float: tuple[Mapping[str, object], ...] = ()

    def with_size(self, size: int) -> Report:
        """The same with the bytes written."""
        return replace(self, bytes_after=size)

    def with_verification(self, found: Mapping[str, Any]) -> Report:
        """The same with the comparison with the original."""
        return replace(self, verification=found)

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")


def coverage_lines(scan: LinearScan) -> list[str]:
    """How many nodes are linears, and why the others are not."""
    lines = [f"linears      {scan.coverage}"]
    reasons = Counter(other.reason for other in scan.others)
    lines += [f"             {count} left alone: {reason}" for reason, count in reasons.items()]
    return lines


def why_none(scan: LinearScan, model: ir.Model) -> str:
    """What a model without linears has instead, to follow a sentence; '' where it has nothing."""
    reasons = Counter(other.reason for other in scan.others)
    parts = [f"{count} left alone: {reason}" for reason, count in reasons.items()]
    named = {other.name for other in scan.others}
    rest = sum(node.op_type in CONVOLUTIONS and node.name not in named for node in model.graph)
    if rest:
        parts.append(f"{rest} convolutions, which are not quantized")
    if IN_SUBGRAPH in reasons:
        parts.append(
            "convert what was merged into it one by one (optimum-onnx writes decoder_model.onnx "
            "and decoder_with_past_model.onnx beside decoder_model_merged.onnx)"
        )
    return "".join(f"; {part}" for part in parts)


def scheme_lines(plan: Plan) -> list[str]:
    """How many linears per scheme, and why some could not be equalized."""
    counts = plan.counts()
    text = scheme_counts(counts)
    lines = [f"schemes      {text}"]
    declined = [entry for entry in plan.linears if "cannot be equalized" in entry.reason]
    if declined:
        lines.append(
            f"             {len(declined)} would be equalized but are per-token, such as "
            f"{declined[0].path}: {declined[0].reason.split('cannot be equalized: ')[1]}"
        )
    decide = [entry for entry in plan.linears if entry.reason.startswith(STAYS)]
    for what in dict.fromkeys(entry.reason.split(" (")[0] for entry in decide):
        some = [entry for entry in decide if entry.reason.split(" (")[0] == what]
        lines.append(f"             {len(some)} in float, such as {some[0].path}: {some[0].reason}")
    return lines


def scheme_counts(counts: Mapping[str, int]) -> str:
    """'2 static, 29 per-token dynamic': the paper's three always, others where there are any."""
    return ", ".join(
        f"{counts[scheme]} {name}"
        for scheme, name in SCHEME_NAMES.items()
        if counts[scheme] or scheme in (STATIC, LAE_STATIC, PER_TOKEN)
    )


def linear_rows(plan: Plan, blocks: Mapping[str, Block]) -> tuple[dict[str, object], ...]:
    """Where each linear is and how it is stored, for machines."""
    return tuple(
        {
            "name": entry.name,
            "path": entry.path,
            "role": blocks[entry.name].role,
            "layer": blocks[entry.name].layer,
            "scheme": entry.scheme,
            "weight_bits": entry.weight_bits,
        }
        for entry in plan.linears
    )


def plan_table(plan: Plan, blocks: Mapping[str, Block]) -> list[str]:
    """One row per linear: path, layer, role, shape, range, scheme, reason.

    Args:
        plan: the decisions.
        blocks: by name; linears that are not among them get a dash.
    """
    header = ("linear", "layer", "role", "K x N", "range", "scheme", "why")
    rows = [header, *(_row(entry, blocks.get(entry.name)) for entry in plan.linears)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _row(entry: LinearPlan, block: Block | None) -> tuple[str, ...]:
    return (
        entry.path,
        "-" if block is None else block.layer_text,
        "-" if block is None else block.role,
        f"{entry.k} x {entry.n}",
        f"{entry.range:.4g}",
        entry.scheme,
        entry.reason + (f"; folded into {entry.fold_site}" if entry.fold_site else ""),
    )
