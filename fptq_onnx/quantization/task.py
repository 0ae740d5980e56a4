"""What one run of the solver is about."""

from __future__ import annotations

from dataclasses import dataclass

from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan


@dataclass(frozen=True)
class QuantizationTask:
    """A model, what is known of it, and what is wanted.

    loaded: the float model, normalized; not changed.
    scan: its linears.
    plan: what to start from: which linears stay in float, bits, groups, and schemes by ranges.
    stats: channel ranges of all inputs; static scales come from them.
    config: policy, equalization, method and budget.
    as_planned: the plan has the schemes and smoothing scales already: a plan that is replayed.
    """

    loaded: LoadedModel
    scan: LinearScan
    plan: Plan
    stats: ActivationStats
    config: Config
    as_planned: bool = False
