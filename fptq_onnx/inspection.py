"""What `fptq-onnx inspect` shows: coverage, and a row per linear."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import find_model_file
from fptq_onnx.output_folder import REPORT_FILE
from fptq_onnx.pipeline import PLAN_FILE, convert
from fptq_onnx.plan import Plan
from fptq_onnx.report import SCHEME_NAMES, plan_table


def inspect_model(model: Path, *, as_json: bool, **planning: Any) -> list[str]:
    """Lines to print for a float model, or for a folder that convert wrote.

    Args:
        model: a .onnx file or a folder.
        as_json: one JSON object instead of a table.
        planning: arguments of convert (samples, config, stats, plan, ...).

    Raises:
        FptqError: see convert; a damaged report.
    """
    folder = find_model_file(model).parent
    if (folder / REPORT_FILE).is_file() and (folder / PLAN_FILE).is_file():
        return _converted(folder, as_json=as_json)
    lines: list[str] = []
    result = convert(model, dry_run=True, say=lines.append, **planning)
    if not as_json:
        return [*lines, *plan_table(result.plan)]
    return [
        json.dumps(
            {
                "linears": [asdict(entry) for entry in result.plan.linears],
                "others": [asdict(other) for other in result.scan.others],
                "coverage": result.scan.coverage,
                "schemes": result.plan.counts(),
            },
            indent=2,
        )
    ]


def _converted(folder: Path, *, as_json: bool) -> list[str]:
    plan = Plan.load(folder / PLAN_FILE)
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        target, found, total = report["target"], report["linears"], report["matmul_like"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FptqError(f"{folder / REPORT_FILE} is damaged: convert the model again") from error
    if as_json:
        linears = [asdict(entry) for entry in plan.linears]
        return [json.dumps({"report": report, "linears": linears}, indent=2)]
    counts = plan.counts()
    schemes = ", ".join(f"{counts[scheme]} {SCHEME_NAMES[scheme]}" for scheme in SCHEME_NAMES)
    return [
        f"converted    target {target}, by fptq-onnx {report.get('version')}",
        f"linears      {found} of {total} MatMul-like nodes are linears",
        f"schemes      {schemes}",
        *plan_table(plan),
    ]
