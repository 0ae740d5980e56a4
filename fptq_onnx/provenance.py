"""Where an output came from: the first half of its report, and the stamp inside the model file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from fptq_onnx import __version__
from fptq_onnx.calibration.stats import ActivationStats
from fptq_onnx.config import Config
from fptq_onnx.graph.block_view import find_blocks
from fptq_onnx.graph.linears import LinearScan, find_linears
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.model_save import DATA_FILE, MODEL_FILE
from fptq_onnx.plan import Plan
from fptq_onnx.report import Report, linear_rows
from fptq_onnx.samples import Samples


def new_report(
    target: str,
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    config: Config,
    samples: Samples,
    stats: ActivationStats,
) -> Report:
    """What is known before anything is written."""
    return Report(
        version=__version__,
        target=target,
        source={"file": loaded.file.name, "sha256": loaded.sha256()},
        options={
            **asdict(config),
            "calibration": {**samples.describe(), "used": stats.source, "samples": stats.samples},
        },
        linears=len(scan.linears),
        matmul_like=len(scan.linears) + len(scan.others),
        per_linear=linear_rows(plan, find_blocks(scan.linears)),
        others=tuple(asdict(other) for other in scan.others),
        schemes=plan.counts() if config.quantize else {},
        folded=(),
        bits_per_weight=0.0,
        bytes_before=loaded.bytes,
        bytes_after=0,
    )


def stamp(model: ir.Model, report: Report) -> None:
    """Write version, target, options and the source's sha256 into the model's metadata_props."""
    model.metadata_props["fptq.version"] = report.version
    model.metadata_props["fptq.target"] = report.target
    model.metadata_props["fptq.options"] = json.dumps(report.options)
    model.metadata_props["fptq.source_sha256"] = json.dumps(report.source["sha256"])


def bits_per_weight(plan: Plan, emitted: ir.Model) -> float:
    """Average bits stored per weight of all linears: codes, scales, zero points and padding.

    A linear kept in float counts with its float type.
    """
    weights = sum(entry.k * entry.n for entry in plan.linears)
    stored = 0.0
    kept = {linear.name: linear for linear in find_linears(emitted).linears}
    for entry in plan.linears:
        if entry.name in kept:
            stored += entry.k * entry.n * kept[entry.name].weight.dtype.itemsize
        # Linears fused into one node have their tensors under the first one's name.
        for part in ("W4", "W8", "scales", "zero_points"):
            value = emitted.graph.initializers.get(f"{entry.name}.{part}")
            if value is not None and value.const_value is not None:
                stored += value.const_value.nbytes
    return 8 * stored / weights


def files_size(folder: Path) -> int:
    """Bytes of the written model and its data."""
    files = (folder / MODEL_FILE, folder / DATA_FILE)
    return sum(file.stat().st_size for file in files if file.exists())
