"""Where an output came from: the first half of its report, and the stamp inside the model file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.report import Report, linear_rows
from fptq_onnx.graph.linears.linears import LinearScan, find_linears
from fptq_onnx.graph.linears.roles import find_blocks
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.model_io.save import DATA_FILE, MODEL_FILE
from fptq_onnx.passes.emit_custom import OP_TYPES
from fptq_onnx.passes.emit_qdq import WEIGHT_SUFFIX
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.version import __version__


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


def bits_per_weight(
    plan: Plan, emitted: ir.Model, shared: Mapping[str, str] | None = None
) -> float:
    """Average bits stored per weight of all linears: codes, scales, zero points and padding.

    A linear kept in float counts with its float type. A weight that several linears have counts
    once, as it is stored; where it is stored in several forms, all of them count.

    Args:
        plan: the decisions.
        emitted: the model of one target.
        shared: see graph/linears/shared_weights.py.
    """
    shared = shared or {}
    first = {entry.name: shared.get(entry.name, entry.name) for entry in plan.linears}
    sizes = {first[entry.name]: entry.k * entry.n for entry in plan.linears}
    kept = {
        first[linear.name]: linear.k * linear.n * linear.weight.dtype.itemsize
        for linear in find_linears(emitted).linears
        if linear.name in first
    }
    parts: dict[int, int] = {}
    for node in emitted.graph:
        for value in _weight_inputs(node, first):
            if value is not None and value.const_value is not None:
                parts[id(value)] = value.const_value.nbytes
    return 8 * (sum(kept.values()) + sum(parts.values())) / sum(sizes.values())


def _weight_inputs(node: ir.Node, names: Collection[str]) -> Sequence[ir.Value | None]:
    """Codes, scales and zero points that a node of ours reads; nothing of other nodes."""
    if node.domain == FPTQ_DOMAIN and node.op_type in OP_TYPES.values():
        return node.inputs[1:4]
    if node.op_type == "MatMulNBits" and node.name in names:
        return node.inputs[1:4]
    name = node.name or ""
    if node.op_type == "DequantizeLinear" and name.removesuffix(WEIGHT_SUFFIX) in names:
        return node.inputs
    return ()


def files_size(folder: Path) -> int:
    """Bytes of the written model and its data."""
    files = (folder / MODEL_FILE, folder / DATA_FILE)
    return sum(file.stat().st_size for file in files if file.exists())
