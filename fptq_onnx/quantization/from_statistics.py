"""The inputs of layer groups by statistics alone: nothing is run, no token is known.

Ranges give the static scales and, with the weights, the smoothing scales of W8A8, SmoothQuant and
the paper; weights are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.linears.shared_weights import fixed_weights
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.numerics.smoothing_scales import ChannelSizes, weight_sizes
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.numerics.weight_methods import Seen
from fptq_onnx.passes.choose_schemes import range_of
from fptq_onnx.quantization.fold_targets import FoldTarget, fold_targets
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.scheme_search import Rounding, SchemeSearch
from fptq_onnx.quantization.sequential import (
    SequentialResult,
    Tracker,
    quantize_sequentially,
)
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup, find_layer_groups
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.quantization.weight_rounding import float_weight
from fptq_onnx.scheme.activation_stats import ChannelRange
from fptq_onnx.scheme.plan import LinearPlan
from fptq_onnx.scheme.scheme_policy import asks_for_lae
from fptq_onnx.scheme.weight_store import WeightStore

Rows = NDArray[np.float32]


def needs_tokens(task: QuantizationTask) -> bool:
    """Whether the solver needs tokens; if not, statistics are enough and nothing is run.

    It does where options or plan ask for what is measured, and where scales have to be judged on
    tokens, since a few are far larger than the rest: with a fixed formula such tokens set the
    scales. Without scales the sizes of the tokens alone tell what one scale costs them. LAE never
    makes it worse for static scales: it takes the largest channel down by most.
    """
    config = task.config
    if config.needs_sequential or task.plan.needs_sequential:
        return True
    if task.as_planned or config.equalization not in ("lae", "smoothquant"):
        return False
    ranges = [task.stats.ranges.get(linear.x.name or "") for linear in task.scan.linears]
    return any(
        channel is not None
        and not channel.unseen
        and (config.equalization != "lae" or asks_for_lae(channel.tensor_absmax, config))
        and loses_tokens(channel.sizes, channel.tensor_absmax)
        for channel in ranges
    )


def quantize_from_statistics(
    task: QuantizationTask, store: WeightStore, *, track: Tracker = lambda items, _: iter(items)
) -> SequentialResult:
    """Decide and quantize every linear without running the model.

    Args:
        task: what is quantized; `needs_tokens` of it is False.
        store: receives the quantized weights, column folds included.
        track: wraps the layer groups to show progress.

    Raises:
        FptqError: see quantize_sequentially.
    """
    # The paper's scales and schemes depend on ranges alone: choose_schemes has planned them.
    task = replace(task, as_planned=task.as_planned or task.config.of_paper)
    return quantize_sequentially(task, StatisticsInputs(task), store, track=track)


@dataclass(frozen=True)
class GroupStatistics:
    """A layer group by its statistics; see GroupInputs.

    group: its linears.
    ranges: of its input.
    scaled: the ranges that smoothing scales are computed from: of all that read the folded value.
    unseen: whether no token reached it.
    target: what takes smoothing scales, or why nothing can.
    reads_weights: whether the smoothing scales depend on weights, as SmoothQuant's do.
    """

    group: LayerGroup
    ranges: ChannelRange
    scaled: ChannelRange
    unseen: bool
    target: FoldTarget | Declined
    reads_weights: bool

    @property
    def follows_tokens(self) -> bool:
        """There are none."""
        return False

    @cached_property
    def sizes(self) -> ChannelSizes:
        """Of the channels; the root mean square of the input is not known, and never read."""
        nothing = np.zeros(len(self.scaled.low))
        absmax, rms = weight_sizes(self._weights()) if self.reads_weights else (nothing, nothing)
        sizes = (self.scaled.absmax, self.scaled.absmax, absmax, rms)
        columns = self.target.columns if isinstance(self.target, FoldTarget) else None
        return ChannelSizes(*(columns.tied(x) for x in sizes) if columns else sizes)

    def _weights(self) -> Iterator[Rows]:
        """One at a time."""
        for linear in self.group.linears:
            yield self.weight(linear)
            forget_pages(linear.weight.sources)

    def weight(self, linear: Linear) -> Rows:
        """Read now, and not kept."""
        return float_weight(linear)

    def search(self, planned: Sequence[LinearPlan], method: str) -> SchemeSearch | None:
        """Nothing is compared."""
        return None

    def seen(self, method: str, smoothing: Rows, rounding: Rounding) -> Seen | None:
        """Nothing is known: weights are rounded to nearest."""
        return None

    def advance(
        self,
        decided: Sequence[LinearPlan],
        smoothing: Rows,
        rounded: Mapping[str, tuple[Rows, Rows]],
    ) -> None:
        """Nothing is computed."""


class StatisticsInputs:
    """The layer groups of a model by their statistics; see ModelInputs."""

    notes: tuple[str, ...] = ()

    def __init__(self, task: QuantizationTask) -> None:
        """Find the groups.

        Args:
            task: what is quantized; `needs_tokens` of it is False.
        """
        scan = task.scan
        self.groups: tuple[LayerGroup, ...] = find_layer_groups(
            task.loaded.model.graph, scan.linears
        )
        # A plan may fold where a weight that is stored once then gets copies, and its LAE depends
        # on ranges alone, so that several groups compute the same scales.
        fixed = {} if task.as_planned else fixed_weights(scan, quantize=task.config.quantize)
        self._targets = fold_targets(
            self.groups, scan.linears, fixed, across_groups=task.as_planned
        )
        self._task, self._linears = task, scan.by_name()
        self.shared = SharedRounding(scan.shared, task.config.weight_method)

    def enter(self, group: LayerGroup) -> GroupStatistics:
        """What is known of a layer group.

        Raises:
            FptqError: the statistics do not fit the model.
        """
        task, target = self._task, self._targets[group.x]
        first = group.linears[0]
        ranges = scaled = range_of(first, task.stats)
        if isinstance(target, FoldTarget) and target.norm is not None:
            for name in target.norm.linears:
                scaled = scaled.merged(range_of(self._linears[name], task.stats))
        return GroupStatistics(
            group, ranges, scaled, task.stats.ranges[first.x.name or ""].unseen, target,
            reads_weights=task.config.equalization == "smoothquant" and not task.as_planned,
        )  # fmt: skip

    def errors(self) -> tuple[LinearErrors, ...]:
        """None is measured."""
        return ()
