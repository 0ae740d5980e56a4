"""Walk through a model stage by stage: decide, equalize and quantize with what each stage sees.

At every stage the input is known in the float model and in the model as quantized so far. Its
divisors and scheme are chosen, its weights rounded for those inputs, and both models go on: errors
made so far are seen, and partly made up for, by the linears after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.bit_budget import wider_forms
from fptq_onnx.calibration.segments import Stage
from fptq_onnx.calibration.stats import ActivationStats
from fptq_onnx.calibration.two_streams import TwoStreams
from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.config import Config
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.column_sites import column_divisors
from fptq_onnx.graph.linears import LinearScan
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.graph.shared_weights import fixed_weights
from fptq_onnx.linear_errors import LinearErrors
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.numerics.fold_scales import NONE, fold_scale
from fptq_onnx.numerics.group_weights import half_scales
from fptq_onnx.passes.choose_schemes import ONE_SCALE, range_of
from fptq_onnx.plan import LinearPlan, Plan
from fptq_onnx.routing_notes import RoutingNotes
from fptq_onnx.shared_moments import SharedMoments
from fptq_onnx.shared_rounding import SharedRounding
from fptq_onnx.stage_choice import Judge, rounding_of
from fptq_onnx.stage_decision import choose_formula, is_static, wants_static, with_scheme
from fptq_onnx.stage_rounding import Seen, float_weight, round_stage
from fptq_onnx.stage_sites import StageSite, stage_sites, without_cached_values
from fptq_onnx.stage_view import StageView
from fptq_onnx.weight_store import WeightStore

Rows = NDArray[np.float32]
Tracker = Callable[[Iterable[Stage], int], Iterator[Stage]]


@dataclass(frozen=True)
class Solved:
    """What the walk decided.

    plan: schemes, folds and scales as they are now.
    scales: divisors [K] by the name of what takes them.
    errors: of every linear, in graph order.
    ratios: of every stage, output error of each wider form relative to the planned one; empty
        unless asked for.
    notes: what a user should know, one sentence each.
    """

    plan: Plan
    scales: Mapping[str, NDArray[np.float32]]
    errors: tuple[LinearErrors, ...]
    ratios: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def solve_weights(
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    stats: ActivationStats,
    config: Config,
    feeds: list[Feed],
    store: WeightStore,
    folder: Path,
    *,
    replay: bool = False,
    try_wider: bool = False,
    threads: int = 0,
    track: Tracker = lambda items, _: iter(items),
) -> Solved:
    """Decide and quantize every linear.

    Args:
        loaded: the float model, normalized; not changed.
        scan: its linears.
        plan: what to start from: which linears stay in float, bits, groups, and the schemes by
            thresholds.
        stats: channel ranges of all inputs; static scales come from them.
        config: policy, equalization and method.
        feeds: complete inputs.
        store: receives the quantized weights, column folds included.
        folder: for intermediate values that do not fit into memory.
        try_wider: measure what wider forms of each stage would save.
        replay: keep the plan's schemes, folds and scales.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        track: wraps the stages to show progress.

    Raises:
        FptqError: a weight or an activation holds NaN or infinity, or the model cannot be run.
    """
    streams = TwoStreams(loaded, scan.linears, feeds, folder, threads=threads)
    fixed = fixed_weights(scan, quantize=config.quantize)
    sites = without_cached_values(stage_sites(streams.stages, scan.linears, fixed), feeds)
    moments = SharedMoments(loaded, streams.stages, scan.shared, feeds, threads=threads)
    shared = SharedRounding(scan.shared, config.weights, moments)
    entries = plan.by_name()
    scales: dict[str, NDArray[np.float32]] = {}
    errors: dict[str, LinearErrors] = {}
    ratios: list[Mapping[str, float]] = []
    routing = RoutingNotes()
    for stage in track(streams.stages, len(streams.stages)):
        streams.enter(stage)
        weights = {linear.name: float_weight(linear) for linear in stage.linears}
        ranges = range_of(stage.linears[0], stats)
        site = sites[stage.x]
        columns = site.columns if isinstance(site, StageSite) else None
        view = StageView(stage, streams, list(weights.values()), ranges, columns)
        routing.add(view)
        planned = [entries[linear.name] for linear in stage.linears]
        judge = Judge(view.sizes, view.sample, view.weights, planned, config.weights)
        if replay:
            formula, left_out = planned[0].equalization, ""
        else:
            formula, left_out = choose_formula(view, judge, planned, site, config)
        divisor = fold_scale(formula, view.sizes)
        if formula != NONE:
            site = _checked(site, divisor, view, planned[0])
            scales[site.name] = divisor
        fold_site = site.name if formula != NONE and isinstance(site, StageSite) else None
        static = None if replay else is_static(view, judge, formula, divisor, fold_site, config)
        if static is False and wants_static(view, fold_site, config):
            left_out = left_out or ONE_SCALE
        decided = [
            with_scheme(
                replace(entry, fold_site=fold_site, equalization=formula),
                view, divisor, static, left_out,
            )
            for entry in planned
        ]  # fmt: skip
        if try_wider:
            ratios.append(_ratios(judge, formula, planned, unseen=view.unseen))
        entries.update({entry.name: entry for entry in decided})
        errors.update({one.name: LinearErrors(one.name, one.path) for one in stage.linears})
        quantized = {}
        if config.quantize:
            look = _look(view, config.weights)
            quantized = round_stage(
                stage, view.weights, decided, divisor, look, store, errors, shared
            )
        outputs = {
            linear.name: view.outputs(
                linear, weights[linear.name], quantized.get(linear.name), divisor,
                rounding_of(entries[linear.name]), errors[linear.name],
            )
            for linear in stage.linears
        }  # fmt: skip
        _leave(streams, stage, outputs)
    divide_columns(store, column_divisors(scan.linears, scales))
    ordered = tuple(entries[linear.name] for linear in scan.linears)
    return Solved(
        replace(plan, linears=ordered),
        scales,
        tuple(errors[linear.name] for linear in scan.linears),
        tuple(ratios),
        (*routing.sentences, *shared.sentences),
    )


def _look(view: StageView, method: str) -> Callable[..., Seen] | None:
    """What a method needs of a stage's input; nothing where it sees no token."""
    if method == "rtn" or view.unseen:
        return None
    return view.moments if method == "gptq" else view.mean_squares


def _leave(
    streams: TwoStreams, stage: Stage, outputs: Mapping[str, Iterator[tuple[Rows, Rows]]]
) -> None:
    streams.leave(stage, outputs)
    forget_pages(value for linear in stage.linears for value in linear.weight.sources)


def divide_columns(store: WeightStore, divisors: Mapping[str, NDArray[np.float32]]) -> None:
    """Give linears the divisors [N] of the activation after them; their codes stay.

    The scales are rounded to float16 again, by 2**-11 of them at most.
    """
    for name, divisor in divisors.items():
        if name in store:
            found = store.get(name)
            scales = half_scales((found.scales / divisor).astype(np.float32))
            store.put(name, replace(found, scales=scales))


def _checked(site: StageSite | str, divisor: Rows, view: StageView, entry: LinearPlan) -> StageSite:
    """The site of a stage that a plan equalizes, or an error."""
    if view.unseen:
        raise FptqError(
            f"the plan equalizes the input of {entry.name}, which no token of the calibration "
            f"samples reaches: give more samples"
        )
    problem = site if isinstance(site, str) else site.overflow(divisor)
    if isinstance(site, str) or problem:
        raise FptqError(
            f"the plan equalizes the input of {entry.name} by {entry.equalization}, but "
            f"{problem}: use equalization 'none' there"
        )
    return site


def _ratios(
    judge: Judge, formula: str, entries: list[LinearPlan], *, unseen: bool
) -> dict[str, float]:
    """By wider form that any of the linears has, the weights' error relative to the planned one."""
    forms = dict.fromkeys(form for entry in entries for form in wider_forms(entry))
    if unseen:
        return dict.fromkeys(forms, 1.0)
    base = judge.weight_error(formula)
    return {form: judge.weight_error(formula, form) / base if base > 0 else 1.0 for form in forms}
