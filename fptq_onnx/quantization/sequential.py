"""Sequential quantization: decide, equalize and quantize each layer group with what it sees.

At every layer group the input is known in the float model and in the model as quantized so far. Its
scales and scheme are chosen, its weights rounded for those inputs, and both models go on: errors
made so far are seen, and partly made up for, by the linears after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.calibration.whole_feeds import Feed
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.linear_sites import column_scales
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.graph.linears.shared_weights import fixed_weights
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.numerics.group_weights import half_scales
from fptq_onnx.numerics.smoothing_scales import NONE, smoothing_scale
from fptq_onnx.passes.choose_schemes import ONE_SCALE, range_of
from fptq_onnx.quantization.fold_targets import FoldTarget, fold_targets, without_cached_values
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.layer_group import LayerGroupInputs
from fptq_onnx.quantization.mixed_precision import precision_candidates
from fptq_onnx.quantization.moe_notes import RoutingNotes
from fptq_onnx.quantization.paired_activations import PairedActivations
from fptq_onnx.quantization.scheme_decision import (
    choose_equalization,
    is_static,
    wants_static,
    with_scheme,
)
from fptq_onnx.quantization.scheme_search import SchemeSearch, rounding_of
from fptq_onnx.quantization.shared_hessian import SharedHessian
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.quantization.weight_rounding import Seen, float_weight, round_layer_group
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import LinearPlan, Plan
from fptq_onnx.scheme.weight_store import WeightStore

Rows = NDArray[np.float32]
Tracker = Callable[[Iterable[LayerGroup], int], Iterator[LayerGroup]]


@dataclass(frozen=True)
class SequentialResult:
    """What was decided.

    plan: schemes, folds and scales as they are now.
    scales: smoothing scales [K] by the name of what takes them.
    errors: of every linear, in graph order.
    ratios: of every layer group, output error of each precision candidate relative to the planned
        one; empty unless asked for.
    notes: what a user should know, one sentence each.
    """

    plan: Plan
    scales: Mapping[str, NDArray[np.float32]]
    errors: tuple[LinearErrors, ...]
    ratios: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def quantize_sequentially(
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
) -> SequentialResult:
    """Decide and quantize every linear.

    Args:
        loaded: the float model, normalized; not changed.
        scan: its linears.
        plan: what to start from: which linears stay in float, bits, groups, and the schemes by
            thresholds.
        stats: channel ranges of all inputs; static scales come from them.
        config: activation_scheme, equalization and weight_method.
        feeds: complete inputs.
        store: receives the quantized weights, column folds included.
        folder: for intermediate values that do not fit into memory.
        try_wider: measure what precision candidates of each layer group would save.
        replay: keep the plan's schemes, folds and scales.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        track: wraps the layer groups to show progress.

    Raises:
        FptqError: a weight or an activation holds NaN or infinity, or the model cannot be run.
    """
    activations = PairedActivations(loaded, scan.linears, feeds, folder, threads=threads)
    fixed = fixed_weights(scan, quantize=config.quantize)
    sites = without_cached_values(fold_targets(activations.groups, scan.linears, fixed), feeds)
    moments = SharedHessian(loaded, activations.groups, scan.shared, feeds, threads=threads)
    shared = SharedRounding(scan.shared, config.weight_method, moments)
    entries = plan.by_name()
    scales: dict[str, NDArray[np.float32]] = {}
    errors: dict[str, LinearErrors] = {}
    ratios: list[Mapping[str, float]] = []
    routing = RoutingNotes()
    for group in track(activations.groups, len(activations.groups)):
        activations.enter(group)
        weights = {linear.name: float_weight(linear) for linear in group.linears}
        ranges = range_of(group.linears[0], stats)
        site = sites[group.x]
        columns = site.columns if isinstance(site, FoldTarget) else None
        view = LayerGroupInputs(group, activations, list(weights.values()), ranges, columns)
        routing.add(view)
        planned = [entries[linear.name] for linear in group.linears]
        search = SchemeSearch(view.sizes, view.sample, view.weights, planned, config.weight_method)
        if replay:
            equalization, left_out = planned[0].equalization, ""
        else:
            equalization, left_out = choose_equalization(view, search, planned, site, config)
        smoothing = smoothing_scale(equalization, view.sizes)
        if equalization != NONE:
            site = _checked(site, smoothing, view, planned[0])
            scales[site.name] = smoothing
        fold_site = site.name if equalization != NONE and isinstance(site, FoldTarget) else None
        static = (
            None if replay else is_static(view, search, equalization, smoothing, fold_site, config)
        )
        if static is False and wants_static(view, fold_site, config):
            left_out = left_out or ONE_SCALE
        decided = [
            with_scheme(
                replace(entry, fold_site=fold_site, equalization=equalization),
                view, smoothing, static, left_out,
            )
            for entry in planned
        ]  # fmt: skip
        if try_wider:
            ratios.append(_ratios(search, equalization, planned, unseen=view.unseen))
        entries.update({entry.name: entry for entry in decided})
        errors.update({one.name: LinearErrors(one.name, one.path) for one in group.linears})
        quantized = {}
        if config.quantize:
            look = _look(view, config.weight_method)
            quantized = round_layer_group(
                group, view.weights, decided, smoothing, look, store, errors, shared
            )
        outputs = {
            linear.name: view.outputs(
                linear, weights[linear.name], quantized.get(linear.name), smoothing,
                rounding_of(entries[linear.name]), errors[linear.name],
            )
            for linear in group.linears
        }  # fmt: skip
        _leave(activations, group, outputs)
    scale_columns(store, column_scales(scan.linears, scales))
    ordered = tuple(entries[linear.name] for linear in scan.linears)
    return SequentialResult(
        replace(plan, linears=ordered),
        scales,
        tuple(errors[linear.name] for linear in scan.linears),
        tuple(ratios),
        (*routing.sentences, *shared.sentences),
    )


def _look(view: LayerGroupInputs, method: str) -> Callable[..., Seen] | None:
    """What a method needs of a layer group's input; nothing where it sees no token."""
    if method == "rtn" or view.unseen:
        return None
    return view.moments if method == "gptq" else view.mean_squares


def _leave(
    activations: PairedActivations,
    group: LayerGroup,
    outputs: Mapping[str, Iterator[tuple[Rows, Rows]]],
) -> None:
    activations.leave(group, outputs)
    forget_pages(value for linear in group.linears for value in linear.weight.sources)


def scale_columns(store: WeightStore, smoothing_scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Give linears the smoothing scales [N] of the activation after them; their codes stay.

    The scales are rounded to float16 again, by 2**-11 of them at most.
    """
    for name, smoothing in smoothing_scales.items():
        if name in store:
            found = store.get(name)
            scales = half_scales((found.scales / smoothing).astype(np.float32))
            store.put(name, replace(found, scales=scales))


def _checked(
    site: FoldTarget | str, smoothing: Rows, view: LayerGroupInputs, entry: LinearPlan
) -> FoldTarget:
    """The site of a layer group that a plan equalizes, or an error."""
    if view.unseen:
        raise FptqError(
            f"the plan equalizes the input of {entry.name}, which no token of the calibration "
            f"samples reaches: give more samples"
        )
    problem = site if isinstance(site, str) else site.overflow(smoothing)
    if isinstance(site, str) or problem:
        raise FptqError(
            f"the plan equalizes the input of {entry.name} by {entry.equalization}, but "
            f"{problem}: use equalization 'none' there"
        )
    return site


def _ratios(
    search: SchemeSearch, equalization: str, entries: list[LinearPlan], *, unseen: bool
) -> dict[str, float]:
    """By precision candidate of any of the linears, the weights' error relative to the planned."""
    precisions = dict.fromkeys(
        precision for entry in entries for precision in precision_candidates(entry)
    )
    if unseen:
        return dict.fromkeys(precisions, 1.0)
    base = search.weight_error(equalization)
    return {
        precision: search.weight_error(equalization, precision) / base if base > 0 else 1.0
        for precision in precisions
    }
