"""Decide and quantize by statistics alone, without running the model, as W8A8 and SmoothQuant do.

The decisions are those of sequential.py, and so are the numbers: ranges give the
static scales and, with the weights, the smoothing scales; weights are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.graph.folding.linear_sites import column_scales
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.graph.linears.shared_weights import fixed_weights
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.numerics.smoothing_scales import NONE, ChannelSizes, smoothing_scale, weight_sizes
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.passes.choose_schemes import ONE_SCALE, range_of
from fptq_onnx.quantization.fold_targets import FoldTarget, fold_targets
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.scheme_decision import (
    choose_equalization,
    is_static,
    wants_static,
    with_scheme,
)
from fptq_onnx.quantization.sequential import SequentialResult, scale_columns
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup, find_layer_groups
from fptq_onnx.quantization.weight_rounding import float_weight, round_layer_group
from fptq_onnx.scheme.activation_stats import ActivationStats, ChannelRange
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore

Rows = NDArray[np.float32]
Tracker = Callable[[Iterable[LayerGroup], int], Iterator[LayerGroup]]


def needs_tokens(scan: LinearScan, stats: ActivationStats, config: Config) -> bool:
    """Whether scales have to be judged on tokens, since a few are far larger than the rest.

    With a fixed formula such tokens set the scales. Without scales the sizes of the tokens
    alone tell what one scale costs them. LAE's never makes it worse for static scales: it takes the
    largest channel down by most.
    """
    if config.equalization not in ("lae", "smoothquant"):
        return False
    ranges = [stats.ranges.get(linear.x.name or "") for linear in scan.linears]
    return any(
        channel is not None
        and not channel.unseen
        and (config.equalization != "lae" or config.v0 < channel.tensor_absmax <= config.v1)
        and loses_tokens(channel.sizes, channel.tensor_absmax)
        for channel in ranges
    )


@dataclass(frozen=True)
class _Facts:
    """A layer group by its statistics; what its rounding needs as well."""

    group: LayerGroup
    ranges: ChannelRange
    sizes: ChannelSizes
    unseen: bool
    weights: list[Rows]


def quantize_from_statistics(
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    stats: ActivationStats,
    config: Config,
    store: WeightStore,
    *,
    track: Tracker = lambda items, _: iter(items),
) -> SequentialResult:
    """Decide and quantize every linear; without `Config.needs_sequential`.

    Args:
        loaded: the float model, normalized; not changed.
        scan: its linears.
        plan: what to start from.
        stats: channel ranges of all inputs.
        config: activation_scheme static, per_token, weight_only or thresholds; equalization
            lae, smoothquant or none; weight_method rtn.
        store: receives the quantized weights, column folds included.
        track: wraps the layer groups to show progress.

    Raises:
        FptqError: a weight holds NaN or infinity, or the statistics do not fit the model.
    """
    groups = find_layer_groups(loaded.model.graph, scan.linears)
    sites = fold_targets(groups, scan.linears, fixed_weights(scan, quantize=config.quantize))
    shared = SharedRounding(scan.shared, config.weight_method)
    entries = plan.by_name()
    scales: dict[str, NDArray[np.float32]] = {}
    for group in track(groups, len(groups)):
        site = sites[group.x]
        facts = _facts(group, stats, site)
        planned = [entries[linear.name] for linear in group.linears]
        equalization, _ = choose_equalization(facts, None, planned, site, config)
        smoothing = smoothing_scale(equalization, facts.sizes)
        fold_site = None
        if equalization != NONE and isinstance(site, FoldTarget):
            fold_site, scales[site.name] = site.name, smoothing
        static = is_static(facts, None, equalization, smoothing, fold_site, config)
        left_out = ONE_SCALE if wants_static(facts, fold_site, config) and not static else ""
        decided = [
            with_scheme(
                replace(entry, fold_site=fold_site, equalization=equalization),
                facts, smoothing, static, left_out,
            )
            for entry in planned
        ]  # fmt: skip
        entries.update({entry.name: entry for entry in decided})
        if config.quantize:
            errors = {one.name: LinearErrors(one.name, one.path) for one in group.linears}
            round_layer_group(group, facts.weights, decided, smoothing, None, store, errors, shared)
        forget_pages(value for linear in group.linears for value in linear.weight.sources)
    scale_columns(store, column_scales(scan.linears, scales))
    return SequentialResult(
        replace(plan, linears=tuple(entries[linear.name] for linear in scan.linears)), scales, ()
    )


def _facts(group: LayerGroup, stats: ActivationStats, site: FoldTarget | str) -> _Facts:
    weights = [float_weight(linear) for linear in group.linears]
    ranges = range_of(group.linears[0], stats)
    absmax, rms = weight_sizes(weights)
    # The root mean square of the input is not known; no formula of ranges reads it.
    sizes = (ranges.absmax, ranges.absmax, absmax, rms)
    columns = site.columns if isinstance(site, FoldTarget) else None
    return _Facts(
        group,
        ranges,
        ChannelSizes(*(columns.tied(x) for x in sizes) if columns else sizes),
        stats.ranges[group.linears[0].x.name or ""].unseen,
        weights,
    )
