"""Quantize once; with a bit target, again with more bits for the most sensitive linears."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fptq_onnx.calibration.data import Source, TokenWindows
from fptq_onnx.calibration.whole_feeds import whole_feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.model_io.load import LoadedModel
from fptq_onnx.progress import tracker
from fptq_onnx.quantization.mixed_precision import (
    allocate_bits,
    check_budget,
    measure_sensitivity,
    one_form,
)
from fptq_onnx.quantization.sequential import SequentialResult, quantize_sequentially
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore

_PROBE_WINDOWS = 8  # that a layer group's share of the sensitivity is measured on


def quantize_within_budget(
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    stats: ActivationStats,
    config: Config,
    source: Source,
    store: WeightStore,
    values: Path,
    *,
    replay: bool,
    threads: int,
    quiet: bool,
    say: Callable[[str], None],
) -> SequentialResult:
    """Decide and quantize every linear within the budget, if there is one.

    Args:
        loaded: the float model, normalized; not changed.
        scan: its linears.
        plan: what to start from.
        stats: channel ranges of all inputs.
        config: activation_scheme, equalization, weight_method and target_bits.
        source: the calibration samples.
        store: receives the quantized weights.
        values: a folder to make for intermediate values; removed again.
        replay: keep the plan's schemes, folds and scales.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        quiet: show no progress.
        say: receives a line about the budget.

    Raises:
        FptqError: the budget cannot be met or measured; see also quantize_sequentially.
    """
    feeds = whole_feeds(loaded, source)

    def run(start: Plan, what: str, *, try_wider: bool = False) -> SequentialResult:
        result = quantize_sequentially(
            loaded, scan, start, stats, config, feeds, store, values,
            replay=replay, try_wider=try_wider, threads=threads, track=tracker(what, quiet),
        )  # fmt: skip
        shutil.rmtree(values)
        return result

    budget = config.target_bits
    if budget is None:
        return run(plan, "quantizing")
    if replay:
        raise FptqError("--target-bits and --plan cannot be combined: the plan has the bits")
    if not isinstance(source, TokenWindows):
        raise FptqError(
            "--target-bits needs token samples (text or random), not feeds: use --int8-layers"
        )
    check_budget(plan, budget)
    first = run(plan, "quantizing", try_wider=True)
    groups, sensitivity = measure_sensitivity(
        loaded, scan, first.plan, first.scales, store, source.windows[:_PROBE_WINDOWS],
        threads=threads, track=tracker("probing", quiet),
    )  # fmt: skip
    wider = one_form(allocate_bits(plan, groups, sensitivity, first.ratios, budget), scan.shared)
    pairs = list(zip(plan.linears, wider.linears, strict=True))
    say(
        f"budget       {budget:g} bits on average: "
        f"{sum(a.weight_bits < b.weight_bits for a, b in pairs)} linears get 8 bits, "
        f"{sum(a.symmetric > b.symmetric for a, b in pairs)} zero points, "
        f"{sum(a.block_size > b.block_size > 0 for a, b in pairs)} smaller blocks"
    )
    return run(wider, "quantizing anew")
