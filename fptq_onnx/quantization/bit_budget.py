"""Solve once; with a budget of bits, again with the linears widened that need it most."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fptq_onnx.calibration.data import Source, TokenWindows
from fptq_onnx.calibration.whole_feeds import whole_feeds
from fptq_onnx.errors import FptqError
from fptq_onnx.quantization.mixed_precision import (
    allocate_bits,
    check_budget,
    measure_sensitivity,
    one_form,
)
from fptq_onnx.quantization.sequential import SequentialResult, quantize_sequentially
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.quantization.token_inputs import TokenInputs
from fptq_onnx.runtime.run_context import RunContext
from fptq_onnx.scheme.plan import Plan
from fptq_onnx.scheme.weight_store import WeightStore

# Windows that a layer group's share of the sensitivity is measured on. The model runs over them
# once for every group, so that their number is what a budget costs in time.
_PROBE_WINDOWS = 8


def quantize_within_budget(
    task: QuantizationTask, source: Source, store: WeightStore, values: Path, context: RunContext
) -> SequentialResult:
    """Decide and quantize every linear with tokens, within the budget if there is one.

    Args:
        task: model, plan, statistics and options.
        source: the calibration samples.
        store: receives the quantized weights.
        values: a folder to make for intermediate values; removed again.
        context: threads and progress; its log receives a line about the budget.

    Raises:
        FptqError: the budget cannot be met or measured; see also quantize_sequentially.
    """
    feeds = whole_feeds(task.loaded, source)

    def run(start: Plan, what: str, *, try_wider: bool = False) -> SequentialResult:
        now = replace(task, plan=start)
        inputs = TokenInputs(now, feeds, values, threads=context.threads)
        result = quantize_sequentially(
            now, inputs, store, try_wider=try_wider, track=context.tracker(what)
        )
        shutil.rmtree(values)
        return result

    plan, budget = task.plan, task.config.target_bits
    if budget is None:
        return run(plan, "quantizing")
    if task.as_planned:
        raise FptqError("--target-bits and --plan cannot be combined: the plan has the bits")
    if not isinstance(source, TokenWindows):
        raise FptqError(
            "--target-bits needs token samples (text or random), not feeds: use --int8-layers"
        )
    check_budget(plan, budget)
    first = run(plan, "quantizing", try_wider=True)
    groups, sensitivity = measure_sensitivity(
        task.loaded, task.scan, first.plan, first.scales, store, source.windows[:_PROBE_WINDOWS],
        threads=context.threads, track=context.tracker("probing"),
    )  # fmt: skip
    allocated = allocate_bits(plan, groups, sensitivity, first.ratios, budget)
    wider = one_form(allocated, task.scan.shared)
    pairs = list(zip(plan.linears, wider.linears, strict=True))
    context.log(
        f"budget       {budget:g} bits on average: "
        f"{sum(a.weight_bits < b.weight_bits for a, b in pairs)} linears get 8 bits, "
        f"{sum(a.symmetric > b.symmetric for a, b in pairs)} zero points, "
        f"{sum(a.block_size > b.block_size > 0 for a, b in pairs)} smaller blocks"
    )
    return run(wider, "quantizing anew")
