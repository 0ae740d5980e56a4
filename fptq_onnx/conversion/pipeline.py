"""The conversion, from an exported model to a W4A8 folder: the flow is the body of `convert`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.calibration.statistics import statistics_of
from fptq_onnx.conversion.check_input import check_input
from fptq_onnx.conversion.int8_kv_cache import check_cache
from fptq_onnx.conversion.options import Options, check_options, default_output
from fptq_onnx.conversion.quality_gate import Gate
from fptq_onnx.conversion.quantize_model import quantize_model, rehearse
from fptq_onnx.conversion.raised_opset_check import check_raised
from fptq_onnx.conversion.report import Report, coverage_lines, why_none
from fptq_onnx.conversion.targets import check_targets
from fptq_onnx.conversion.write_target import write_target
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.model_io.output_folder import atomic_folder, check_output
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.complete_plan import complete_plan
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.task import QuantizationTask
from fptq_onnx.runtime.native_library import library_path
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.layer_selector import select
from fptq_onnx.scheme.plan import Plan

__all__ = ["Conversion", "convert", "default_output"]


@dataclass(frozen=True)
class Conversion:
    """What `convert` returns.

    scan: the linears found and the look-alikes left alone.
    plan: the decision for each linear.
    stats: the channel ranges the plan is based on.
    folders: the written folder of each target; empty after a dry run.
    reports: the report of each target; empty after a dry run.
    warnings: what a user should look at.
    errors: of each linear, where they were measured.
    notes: of a dry run, what a user should know; else they are in the reports.
    """

    scan: LinearScan
    plan: Plan
    stats: ActivationStats
    folders: Mapping[str, Path]
    reports: Mapping[str, Report]
    warnings: tuple[str, ...]
    errors: tuple[LinearErrors, ...] = ()
    notes: tuple[str, ...] = ()


def convert(
    model: str | Path,
    output: str | Path | None = None,
    *,
    targets: Sequence[str] = ("custom",),
    samples: Samples | Any = None,
    config: Config | None = None,
    stats: ActivationStats | Sequence[Path] = (),
    plan: Path | Plan | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    measure_errors: bool = False,
    verify_samples: int = 8,
    gate: Gate | None = None,
    threads: int = 0,
    quiet: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Convert an exported float model to W4A8.

    Args:
        model: a .onnx file or a folder with one. Never changed.
        output: the folder to write; by default `<model's folder>-w4a8` beside it. With several
            targets each gets a subfolder.
        targets: any of config.TARGETS.
        samples: calibration samples: a Samples, or what its `source` may be (a path, an iterable
            of dicts, a CalibrationDataReader); by default what the model itself writes.
        config: thresholds, groups and what to leave alone.
        stats: statistics to use instead of calibrating; one path that does not exist yet is
            calibrated for and written, several are merged.
        plan: a plan to replay instead of deciding; what it says of the whole model goes before
            `config`.
        overwrite: replace an output folder this tool wrote before.
        dry_run: stop when everything is decided; nothing is written.
        measure_errors: run the model layer group by layer group even where the decisions do not
            need it.
        verify_samples: samples to compare with the original on; 0 compares nothing.
        gate: refuse results that are further from the original; needs verify_samples.
        threads: intra-op threads for our runs, 0 lets ONNX Runtime choose.
        quiet: show no progress on stderr.
        say: receives lines for people as the work goes on.

    Returns:
        A Conversion.

    Raises:
        FptqError: anything a user can mend; one sentence says what and how.
    """
    options = check_options(
        model, output, targets=targets, samples=samples, config=config, stats=stats, plan=plan,
        overwrite=overwrite, dry_run=dry_run, measure_errors=measure_errors,
        verify_samples=verify_samples, gate=gate, threads=threads, quiet=quiet, say=say,
    )  # fmt: skip
    loaded = _load(options)
    scan = _find(loaded, options)
    loaded = _check_raised(loaded, options)
    measured = statistics_of(loaded, options.samples, options.stats, options.context)
    start, warnings = _plan(scan, measured, options)
    replayed = options.plan is not None
    task = QuantizationTask(loaded, scan, start, measured, options.config, as_planned=replayed)
    if options.dry_run:
        seen = rehearse(task, options, warnings)
        return Conversion(scan, seen.plan, measured, {}, {}, warnings, seen.errors, seen.notes)
    reports: dict[str, Report] = {}
    with atomic_folder(options.output) as work:
        done = quantize_model(task, options, warnings, work)
        for target in options.written:
            folder = options.folder_of(target, work)
            folder.mkdir(exist_ok=True)
            reports[target] = write_target(done, target, folder, options)
        done.store.remove()
    folders = {target: options.folder_of(target, options.output) for target in options.written}
    return Conversion(scan, done.plan, measured, folders, reports, warnings, done.errors)


def _load(options: Options) -> LoadedModel:
    """Read and normalize the model; refuse what would go wrong later."""
    loaded = load_model(options.model)
    if not options.dry_run:
        check_output(options.model, options.output, overwrite=options.overwrite)
        if "custom" in options.targets and options.verify_samples and options.config.quantize:
            library_path()  # better refused now than when the written model is to be run
    normalize(loaded.model)
    check_input(loaded)
    return loaded


def _find(loaded: LoadedModel, options: Options) -> LinearScan:
    """The linears, of which options and plan may speak and every target must be able to hold."""
    scan = loaded.linears
    options.context.log_all(coverage_lines(scan))
    if not scan.linears:
        raise FptqError(
            f"no linear layer found in {loaded.file} ({scan.coverage}): nothing to quantize"
            f"{why_none(scan, loaded.model)}"
        )
    _check_names(scan, options.config, options.plan)
    if options.config.quantize:
        check_targets(options.targets, loaded.model)
        if options.config.kv_cache == "int8":
            check_cache(loaded.model)
    return scan


def _check_raised(loaded: LoadedModel, options: Options) -> LoadedModel:
    """The model, whose notes tell how a raised opset was checked."""
    context = options.context
    raised = check_raised(
        loaded,
        lambda: options.samples.open(loaded, context),
        context.log,
        threads=context.threads,
    )
    return replace(loaded, notes=(*loaded.notes, *raised)) if raised else loaded


def _plan(
    scan: LinearScan, stats: ActivationStats, options: Options
) -> tuple[Plan, tuple[str, ...]]:
    """What the solver starts from, and warnings about a plan to replay."""
    if options.plan is None:
        return choose_schemes(scan, stats, options.config), ()
    return complete_plan(options.plan, scan, stats)


def _check_names(scan: LinearScan, config: Config, plan: Plan | None) -> None:
    """See before anything is measured that options and plan speak of linears of this model."""
    if plan is None:
        select(scan, "--ignore", config.ignore)
        select(scan, "--int8-layers", config.int8_layers)
        return
    if config.ignore:
        raise FptqError(
            "--ignore and --plan cannot be combined: give the linear scheme 'skip' in the plan"
        )
    if config.int8_layers:
        raise FptqError(
            "--int8-layers and --plan cannot be combined: give the linear weight_bits 8 in the plan"
        )
    plan.check_against(scan)
