"""Plans carried out by the solver on statistics alone: nothing is decided, nothing is run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.quantization.from_statistics import quantize_from_statistics
from fptq_onnx.quantization.sequential import SequentialResult
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import PAPER, Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore


def planned_task(
    model: ir.Model, plan: Plan, stats: ActivationStats, config: Config = PAPER
) -> QuantizationTask:
    """What the solver is given; `model` is as normalized."""
    loaded = LoadedModel(model, Path("model.onnx"), ())
    return QuantizationTask(loaded, find_linears(model), plan, stats, config, as_planned=True)


def carried_out(
    model: ir.Model, plan: Plan, stats: ActivationStats, store: WeightStore, config: Config = PAPER
) -> SequentialResult:
    """Round to nearest as planned, and find the smoothing scales."""
    return quantize_from_statistics(planned_task(model, plan, stats, config), store)
