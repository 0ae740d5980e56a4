"""Decide and quantize by statistics alone, without running the model, as W8A8 and SmoothQuant do.

The decisions are those of the walk (solve_weights.py), and so are the numbers: ranges give the
static scales and, with the weights, the divisors; weights are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.segments import Stage, find_stages
from fptq_onnx.calibration.stats import ActivationStats, ChannelRange
from fptq_onnx.config import Config
from fptq_onnx.graph.column_sites import column_divisors
from fptq_onnx.graph.linears import LinearScan
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.graph.shared_weights import fixed_weights
from fptq_onnx.linear_errors import LinearErrors
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.numerics.fold_scales import NONE, ChannelSizes, fold_scale, weight_sizes
from fptq_onnx.numerics.token_sizes import loses_tokens
from fptq_onnx.passes.choose_schemes import ONE_SCALE, range_of
from fptq_onnx.plan import Plan
from fptq_onnx.shared_rounding import SharedRounding
from fptq_onnx.solve_weights import Solved, divide_columns
from fptq_onnx.stage_decision import choose_formula, is_static, wants_static, with_scheme
from fptq_onnx.stage_rounding import float_weight, round_stage
from fptq_onnx.stage_sites import StageSite, stage_sites
from fptq_onnx.weight_store import WeightStore

Rows = NDArray[np.float32]
Tracker = Callable[[Iterable[Stage], int], Iterator[Stage]]


def needs_tokens(scan: LinearScan, stats: ActivationStats, config: Config) -> bool:
    """Whether divisors have to be judged on tokens, since a few are far larger than the rest.

    With a fixed formula such tokens set the divisors. Without divisors the sizes of the tokens
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
    """A stage by its statistics; what its rounding needs as well."""

    stage: Stage
    ranges: ChannelRange
    sizes: ChannelSizes
    unseen: bool
    weights: list[Rows]


def solve_plain(
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    stats: ActivationStats,
    config: Config,
    store: WeightStore,
    *,
    track: Tracker = lambda items, _: iter(items),
) -> Solved:
    """Decide and quantize every linear; without `Config.walks`.

    Args:
        loaded: the float model, normalized; not changed.
        scan: its linears.
        plan: what to start from.
        stats: channel ranges of all inputs.
        config: policy static, per_token, float or thresholds; equalization lae, smoothquant or
            none; weights rtn.
        store: receives the quantized weights, column folds included.
        track: wraps the stages to show progress.

    Raises:
        FptqError: a weight holds NaN or infinity, or the statistics do not fit the model.
    """
    stages = find_stages(loaded.model.graph, scan.linears)
    sites = stage_sites(stages, scan.linears, fixed_weights(scan, quantize=config.quantize))
    shared = SharedRounding(scan.shared, config.weights)
    entries = plan.by_name()
    scales: dict[str, NDArray[np.float32]] = {}
    for stage in track(stages, len(stages)):
        site = sites[stage.x]
        facts = _facts(stage, stats, site)
        planned = [entries[linear.name] for linear in stage.linears]
        formula, _ = choose_formula(facts, None, planned, site, config)
        divisor = fold_scale(formula, facts.sizes)
        fold_site = None
        if formula != NONE and isinstance(site, StageSite):
            fold_site, scales[site.name] = site.name, divisor
        static = is_static(facts, None, formula, divisor, fold_site, config)
        left_out = ONE_SCALE if wants_static(facts, fold_site, config) and not static else ""
        decided = [
            with_scheme(
                replace(entry, fold_site=fold_site, equalization=formula),
                facts, divisor, static, left_out,
            )
            for entry in planned
        ]  # fmt: skip
        entries.update({entry.name: entry for entry in decided})
        if config.quantize:
            errors = {one.name: LinearErrors(one.name, one.path) for one in stage.linears}
            round_stage(stage, facts.weights, decided, divisor, None, store, errors, shared)
        forget_pages(value for linear in stage.linears for value in linear.weight.sources)
    divide_columns(store, column_divisors(scan.linears, scales))
    return Solved(
        replace(plan, linears=tuple(entries[linear.name] for linear in scan.linears)), scales, ()
    )


def _facts(stage: Stage, stats: ActivationStats, site: StageSite | str) -> _Facts:
    weights = [float_weight(linear) for linear in stage.linears]
    ranges = range_of(stage.linears[0], stats)
    absmax, rms = weight_sizes(weights)
    # The root mean square of the input is not known; no formula of ranges reads it.
    sizes = (ranges.absmax, ranges.absmax, absmax, rms)
    columns = site.columns if isinstance(site, StageSite) else None
    return _Facts(
        stage,
        ranges,
        ChannelSizes(*(columns.tied(x) for x in sizes) if columns else sizes),
        stats.ranges[stage.linears[0].x.name or ""].unseen,
        weights,
    )
