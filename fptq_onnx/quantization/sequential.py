"""The solver: quantize a model layer group by layer group.

At every layer group its input is known: by the tokens that reach it in the float model and in the
model as quantized so far, or by statistics alone. Its scales and scheme are chosen, its weights
rounded for that input, and the models go on: errors made so far are seen, and partly made up for,
by the linears after them. Recipes differ in the policy and in what is known, not in the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.graph.folding.linear_sites import column_scales
from fptq_onnx.numerics.group_weights import half_scales
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.layer_group_step import GroupInputs, LayerGroupStep
from fptq_onnx.quantization.scheme_decision import ByOptions
from fptq_onnx.quantization.scheme_policies import AsPlanned
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore

Tracker = Callable[[Iterable[LayerGroup], int], Iterator[LayerGroup]]


class ModelInputs(Protocol):
    """What the solver is told of a model: TokenInputs, or StatisticsInputs.

    groups: the layer groups in graph order.
    shared: rounds a weight once that several linears have.
    """

    groups: tuple[LayerGroup, ...]
    shared: SharedRounding

    def enter(self, group: LayerGroup) -> GroupInputs:
        """What is known of a layer group; groups are entered in order."""

    def errors(self) -> tuple[LinearErrors, ...]:
        """Of every linear in graph order; none where nothing was measured."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, one sentence each."""


@dataclass(frozen=True)
class SequentialResult:
    """What the solver decided.

    plan: schemes, folds and scales as they are now.
    scales: smoothing scales [K] by the name of what takes them.
    errors: of every linear, in graph order; none where no token was known.
    ratios: of every layer group, output error of each precision candidate relative to the
        planned one; empty unless asked for.
    notes: what a user should know, one sentence each.
    """

    plan: Plan
    scales: Mapping[str, NDArray[np.float32]]
    errors: tuple[LinearErrors, ...]
    ratios: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def quantize_sequentially(
    task: QuantizationTask,
    inputs: ModelInputs,
    store: WeightStore,
    *,
    try_wider: bool = False,
    track: Tracker = lambda items, _: iter(items),
) -> SequentialResult:
    """Decide and quantize every linear.

    Args:
        task: model, plan, statistics and options.
        inputs: the layer groups and what is known of their inputs.
        store: receives the quantized weights, column folds included.
        try_wider: measure what precision candidates of each layer group would save.
        track: wraps the layer groups to show progress.

    Raises:
        FptqError: a weight or an activation holds NaN or infinity, the model cannot be run, the
            statistics do not fit it, or a plan asks for a fold that is impossible.
    """
    policy = AsPlanned() if task.as_planned else ByOptions(task.config)
    entries = task.plan.by_name()
    scales: dict[str, NDArray[np.float32]] = {}
    ratios: list[Mapping[str, float]] = []
    for group in track(inputs.groups, len(inputs.groups)):
        planned = [entries[linear.name] for linear in group.linears]
        step = LayerGroupStep(inputs.enter(group), planned, task.config.weight_method, policy)
        step.choose_scales()
        step.choose_scheme()
        if try_wider:
            ratios.append(step.gains_of_precision())
        if task.config.quantize:
            step.round_weights(store, inputs.shared)
        step.advance()
        entries.update({entry.name: entry for entry in step.decided})
        if step.folded_into is not None:
            scales[step.folded_into] = step.smoothing
    linears = task.scan.linears
    _scale_columns(store, column_scales(linears, scales))
    plan = replace(task.plan, linears=tuple(entries[linear.name] for linear in linears))
    return SequentialResult(plan, scales, inputs.errors(), tuple(ratios), inputs.notes)


def _scale_columns(store: WeightStore, smoothing_scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Give linears the smoothing scales [N] of the activation after them; their codes stay.

    The scales are rounded to float16 again, by 2**-11 of them at most.
    """
    for name, smoothing in smoothing_scales.items():
        if name in store:
            found = store.get(name)
            scales = half_scales((found.scales / smoothing).astype(np.float32))
            store.put(name, replace(found, scales=scales))
