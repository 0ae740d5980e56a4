"""From a plan to a model whose targets can be written: quantize, fold, optimize the graph."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.conversion.float_tensors import expected_floats
from fptq_onnx.conversion.graph_optimization import optimize_graph
from fptq_onnx.conversion.graph_optimization_check import check_graph_optimization
from fptq_onnx.conversion.options import Options
from fptq_onnx.conversion.report import scheme_lines
from fptq_onnx.model_io.load import load_model
from fptq_onnx.passes import apply
from fptq_onnx.passes.choose_schemes import massive_notes
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.passes.widen_bfloat16 import narrow_interface
from fptq_onnx.quantization.bit_budget import quantize_within_budget
from fptq_onnx.quantization.from_statistics import needs_tokens, quantize_from_statistics
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.mixed_precision import planned_bits
from fptq_onnx.quantization.sequential import SequentialResult
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.scheme.plan import SKIP, Plan
from fptq_onnx.scheme.weight_store import WeightStore


@dataclass(frozen=True)
class Prepared:
    """The equalized model with its quantized weights, before any target.

    task: what the solver was given.
    model: weights still in floats, smoothing scales folded.
    plan: as decided.
    store: the quantized weights.
    folded: names of the norms and linears that took smoothing scales.
    errors: of each linear, where they were measured.
    warnings, notes: for the user, one sentence each.
    """

    task: QuantizationTask
    model: ir.Model
    plan: Plan
    store: WeightStore
    folded: tuple[str, ...]
    errors: tuple[LinearErrors, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def quantize_model(
    task: QuantizationTask, options: Options, warnings: tuple[str, ...], work: Path
) -> Prepared:
    """Quantize the weights, fold the smoothing scales and optimize the graph.

    Args:
        task: what the solver is given.
        options: of the conversion.
        warnings: of the plan.
        work: the output folder in the making, for weights and intermediate values.

    Raises:
        FptqError: see quantize_sequentially.
    """
    store = WeightStore(work / ".weights")
    model = load_model(task.loaded.file).model
    widened = _widened_note(narrow_interface(model))
    normalize(model)
    result = _solve(task, options, store, work)
    ((_, done),) = apply(model, [partial(fold_into_producers, scales=result.scales)]).results
    context = options.context
    context.log_all(scheme_lines(result.plan), warnings)
    context.log(f"folded       {len(done.names)} equalizations into the norms and linears before")
    massive = () if task.as_planned else massive_notes(result.plan)
    optimized = _optimize_graph(model, task, options)
    notes = (*task.loaded.notes, *widened, *result.notes, *massive, *optimized)
    return Prepared(task, model, result.plan, store, done.names, result.errors, warnings, notes)


def rehearse(task: QuantizationTask, options: Options, warnings: tuple[str, ...]) -> Prepared:
    """Decide as for real, and keep nothing but the decisions.

    Args:
        task: what the solver is given.
        options: of the conversion.
        warnings: of the plan.

    Raises:
        FptqError: see quantize_sequentially.
    """
    with tempfile.TemporaryDirectory() as work:
        by_ranges = task.as_planned or options.config.of_paper
        if by_ranges and not _needs_tokens(task, options):  # the plan is as it will be
            options.context.log_all(scheme_lines(task.plan), warnings)
            store = WeightStore(Path(work))
            prepared = Prepared(task, task.loaded.model, task.plan, store, (), (), warnings)
        else:
            prepared = quantize_model(task, options, warnings, Path(work))
    notes = _expected(task, options, prepared.plan)
    options.context.log_all(f"note         {text}" for text in notes)
    return replace(prepared, notes=notes)


def _needs_tokens(task: QuantizationTask, options: Options) -> bool:
    return options.measure_errors or needs_tokens(task)


def _solve(
    task: QuantizationTask, options: Options, store: WeightStore, work: Path
) -> SequentialResult:
    """With tokens where they are needed; samples the model writes are written only then."""
    context = options.context
    if not _needs_tokens(task, options):
        return quantize_from_statistics(task, store, track=context.tracker("quantizing"))
    source = options.samples.open(task.loaded, context)
    return quantize_within_budget(task, source, store, work / ".values", context)


def _optimize_graph(model: ir.Model, task: QuantizationTask, options: Options) -> tuple[str, ...]:
    """Rewrite in place what gives the same outputs in the original; notes."""
    if not options.config.graph_optimization:
        return ()
    threads = options.context.threads
    checked = check_graph_optimization(
        task.loaded, lambda: options.samples.drawn(task.loaded, threads=threads), threads=threads
    )
    checked = replace(checked, done=optimize_graph(model, checked.names))
    options.context.log_all(checked.lines)
    return checked.notes


def _expected(task: QuantizationTask, options: Options, plan: Plan) -> tuple[str, ...]:
    """What will stay in floats; a weight that several linears have counts once."""
    sizes: dict[str, float] = {}
    for entry in plan.linears:
        if entry.scheme != SKIP:
            sizes.setdefault(task.scan.shared.get(entry.name, entry.name), planned_bits(entry) / 8)
    return expected_floats(task.loaded.model, task.scan, plan, options.config, sum(sizes.values()))


def _widened_note(names: tuple[str, ...]) -> tuple[str, ...]:
    """What users of a bfloat16 model must know: its callers have to feed and take float32."""
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"inputs and outputs of type bfloat16 are float32 in the result ({shown}): ONNX Runtime's "
        "CPU kernels do not compute in bfloat16",
    )
