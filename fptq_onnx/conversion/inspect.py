"""What `fptq-onnx inspect` shows: coverage, a row per linear, and how far each one is off."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fptq_onnx.conversion.pipeline import convert
from fptq_onnx.conversion.report import plan_table, scheme_counts
from fptq_onnx.conversion.write_target import PLAN_FILE
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.roles import Block, find_blocks
from fptq_onnx.model_io.hf_config import find_model_file
from fptq_onnx.model_io.output_folder import REPORT_FILE
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.plan import Plan

_METHODS = ("weight_method", "equalization", "activation_scheme")
_BY_RANGE = (
    "note         schemes by the paper's thresholds on ranges; convert measures errors "
    "instead: see convert --dry-run"
)


def inspect_model(model: Path, *, as_json: bool, config: Config, **planning: Any) -> list[str]:
    """Lines to print for a float model, or for a folder that convert wrote.

    Args:
        model: a .onnx file or a folder.
        as_json: one JSON object instead of a table.
        config: of the conversion; of a default one schemes are shown as ranges alone decide them.
        planning: arguments of convert (samples, stats, plan, ...).

    Raises:
        FptqError: see convert; a damaged report.
    """
    folder = find_model_file(model).parent
    if (folder / REPORT_FILE).is_file() and (folder / PLAN_FILE).is_file():
        return _converted(folder, as_json=as_json)
    by_range = config.activation_scheme == "measured"  # measuring runs the model
    if by_range:
        methods = {name: getattr(PAPER, name) for name in _METHODS}
        config = replace(config, target_bits=None, **methods)
    lines: list[str] = []
    result = convert(model, dry_run=True, say=lines.append, config=config, **planning)
    blocks = find_blocks(result.scan.linears)
    if not as_json:
        return [*lines, *([_BY_RANGE] if by_range else []), *plan_table(result.plan, blocks)]
    return [
        json.dumps(
            {
                "linears": [
                    {**asdict(entry), **asdict(blocks[entry.name])} for entry in result.plan.linears
                ],
                "others": [asdict(other) for other in result.scan.others],
                "coverage": result.scan.coverage,
                "schemes": result.plan.counts(),
                "notes": result.notes,
            },
            indent=2,
        )
    ]


def inspect_errors(model: Path, *, as_json: bool, **planning: Any) -> list[str]:
    """SQNR of each linear's input, weight and output, the worst output first.

    Args:
        model: a float model, which is quantized in memory to see; or a folder that convert wrote.
        as_json: JSON instead of a table.
        planning: arguments of convert.

    Raises:
        FptqError: see convert; a folder written without measuring errors, or a damaged report.
    """
    folder = find_model_file(model).parent
    if (folder / REPORT_FILE).is_file():
        rows = _read_report(folder).get("errors") or []
        if not rows:
            raise FptqError(
                f"{folder} was written without measuring errors: give the float model and the same "
                f"options to inspect --errors"
            )
        lines = [f"errors       as measured when {folder.name} was converted (report.json)"]
    else:
        lines = []
        result = convert(model, dry_run=True, measure_errors=True, say=lines.append, **planning)
        blocks = find_blocks(result.scan.linears)
        rows = [{**item.to_dict(), **asdict(blocks[item.name])} for item in result.errors]
    rows = sorted(rows, key=_badness)
    if as_json:
        return [json.dumps(rows, indent=2)]
    return [*lines, *_error_table(rows)]


_COLUMNS = {
    "output_local_sqnr_db": "output",
    "output_total_sqnr_db": "with all before",
    "input_local_sqnr_db": "input",
    "input_total_sqnr_db": "with all before",
    "weight_sqnr_db": "weight",
}


def _badness(row: Mapping[str, Any]) -> float:
    value = row.get("output_local_sqnr_db")
    return math.inf if value is None else float(value)


def _error_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    table = [("SQNR in dB", *_COLUMNS.values())]
    for row in rows:
        cells = ("exact" if row.get(key) is None else f"{row[key]:.1f}" for key in _COLUMNS)
        table.append((str(row["path"] or row["name"]), *cells))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in table
    ]


def _read_report(folder: Path) -> dict[str, Any]:
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        return {"target": report["target"], "linears": report["linears"],
                "matmul_like": report["matmul_like"], **report}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder) from error


def _damaged(folder: Path) -> FptqError:
    return FptqError(f"{folder / REPORT_FILE} is damaged: convert the model again")


def _blocks_of(report: Mapping[str, Any], folder: Path) -> dict[str, Block]:
    """Role and layer by name, as the report has them; none in reports of older versions."""
    try:
        return {
            row["name"]: Block(str(row["role"]), row["layer"])
            for row in report.get("per_linear", ())
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder) from error


def _converted(folder: Path, *, as_json: bool) -> list[str]:
    plan = Plan.load(folder / PLAN_FILE)
    report = _read_report(folder)
    blocks = _blocks_of(report, folder)
    if as_json:
        linears = [
            {**asdict(entry), **(asdict(blocks[entry.name]) if entry.name in blocks else {})}
            for entry in plan.linears
        ]
        return [json.dumps({"report": report, "linears": linears}, indent=2)]
    return [
        f"converted    target {report['target']}, by fptq-onnx {report.get('version')}",
        f"linears      {report['linears']} of {report['matmul_like']} MatMul-like nodes are "
        f"linears",
        f"schemes      {scheme_counts(plan.counts())}",
        *(f"note         {text}" for text in report.get("notes", ())),
        *plan_table(plan, blocks),
    ]
