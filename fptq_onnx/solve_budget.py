"""Walk the model once; with a budget of bits, again with the linears widened that need it most."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fptq_onnx.bit_budget import check_budget, measure_harm, one_form, spend_budget
from fptq_onnx.calibration.data import Source, TokenWindows
from fptq_onnx.calibration.stats import ActivationStats
from fptq_onnx.calibration.whole_feeds import whole_feeds
from fptq_onnx.config import Config
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears import LinearScan
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.plan import Plan
from fptq_onnx.progress import tracker
from fptq_onnx.solve_weights import Solved, solve_weights
from fptq_onnx.weight_store import WeightStore

_PROBE_WINDOWS = 8  # that a stage's share of the harm is measured on


def solve_budget(
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
) -> Solved:
    """Decide and quantize every linear within the budget, if there is one.

    Args:
        loaded: the float model, normalized; not changed.
        scan: its linears.
        plan: what to start from.
        stats: channel ranges of all inputs.
        config: policy, equalization, method and budget.
        source: the calibration samples.
        store: receives the quantized weights.
        values: a folder to make for intermediate values; removed again.
        replay: keep the plan's schemes, folds and scales.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        quiet: show no progress.
        say: receives a line about the budget.

    Raises:
        FptqError: the budget cannot be met or measured; see also solve_weights.
    """
    feeds = whole_feeds(loaded, source)

    def walk(start: Plan, what: str, *, try_wider: bool = False) -> Solved:
        solved = solve_weights(
            loaded, scan, start, stats, config, feeds, store, values,
            replay=replay, try_wider=try_wider, threads=threads, track=tracker(what, quiet),
        )  # fmt: skip
        shutil.rmtree(values)
        return solved

    budget = config.bits_budget
    if budget is None:
        return walk(plan, "quantizing")
    if replay:
        raise FptqError("--bits-budget and --plan cannot be combined: the plan has the bits")
    if not isinstance(source, TokenWindows):
        raise FptqError("--bits-budget needs token samples (text or random), not feeds: use --w8")
    check_budget(plan, budget)
    first = walk(plan, "quantizing", try_wider=True)
    stages, harm = measure_harm(
        loaded, scan, first.plan, first.scales, store, source.windows[:_PROBE_WINDOWS],
        threads=threads, track=tracker("probing", quiet),
    )  # fmt: skip
    wider = one_form(spend_budget(plan, stages, harm, first.ratios, budget), scan.shared)
    pairs = list(zip(plan.linears, wider.linears, strict=True))
    say(
        f"budget       {budget:g} bits on average: "
        f"{sum(a.weight_bits < b.weight_bits for a, b in pairs)} linears get 8 bits, "
        f"{sum(a.symmetric > b.symmetric for a, b in pairs)} zero points, "
        f"{sum(a.block_size > b.block_size > 0 for a, b in pairs)} smaller blocks"
    )
    return walk(wider, "quantizing anew")
