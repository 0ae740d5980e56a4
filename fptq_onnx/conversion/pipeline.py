"""The conversion, from an exported model to a W4A8 folder: the whole flow on one screen.

load -> normalize -> calibrate -> plan -> equalize -> quantize -> clean up -> emit(target)
-> save + verify
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.check_input import check_input
from fptq_onnx.conversion.int8_kv_cache import check_cache
from fptq_onnx.conversion.job import Job, notes_once, say_all
from fptq_onnx.conversion.quality_gate import Gate
from fptq_onnx.conversion.raised_opset_check import check_raised
from fptq_onnx.conversion.report import Report, coverage_lines, why_none
from fptq_onnx.conversion.targets import FLOAT_TARGET, check_targets
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.model_io.load import load_model
from fptq_onnx.model_io.model_folder import hub_repository, model_name
from fptq_onnx.model_io.output_folder import atomic_folder, check_output
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.complete_plan import complete_plan
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.runtime.native_library import library_path
from fptq_onnx.runtime.thread_count import check_threads
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import TARGETS, Config
from fptq_onnx.scheme.layer_selector import select
from fptq_onnx.scheme.plan import Plan


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
        measure_errors: walk through the model even where the decisions do not need it.
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
    config = config or Config()
    if not isinstance(samples, Samples):
        samples = Samples() if samples is None else Samples(samples)
    if verify_samples < 0:
        raise FptqError("--verify-samples must not be negative")
    check_threads(threads)
    gate = gate or Gate()
    if gate.closed and not verify_samples:
        raise FptqError("--max-kl and --min-top1 need samples to compare on: --verify-samples")
    _check_targets(targets)
    if plan is not None:
        plan = plan if isinstance(plan, Plan) else Plan.load(plan)
        config = plan.applied(config)
    if "qdq" in targets and config.embedding_bits == 4:
        raise FptqError("standard ops have no lookup in 4 bits: --embedding-bits 8 for target qdq")
    loaded = load_model(Path(model))
    destination = default_output(Path(model)) if output is None else Path(output)
    if not dry_run:
        check_output(Path(model), destination, overwrite=overwrite)
        if "custom" in targets and verify_samples and config.quantize:
            library_path()  # better refused now than when the written model is to be run
    say = notes_once(say)
    normalize(loaded.model)
    check_input(loaded)
    scan = loaded.linears
    say_all(say, coverage_lines(scan))
    if not scan.linears:
        raise FptqError(
            f"no linear layer found in {loaded.file} ({scan.coverage}): nothing to quantize"
            f"{why_none(scan, loaded.model)}"
        )
    _check_names(scan, config, plan)
    if config.quantize:
        check_targets(targets, loaded.model)
        if config.kv_cache == "int8":
            check_cache(loaded.model)
    raised = check_raised(
        loaded, lambda: samples.open(loaded, threads=threads, quiet=quiet), say, threads=threads
    )
    stats = samples.statistics(loaded, stats, threads=threads, quiet=quiet, say=say)
    decided, warnings = _decide(scan, stats, config, plan)
    job = Job(
        loaded,
        scan,
        stats,
        config,
        samples,
        plan is not None,
        measure_errors,
        verify_samples,
        gate,
        threads,
        quiet,
        say,
        raised,
    )
    if dry_run:
        prepared = job.rehearse(decided, warnings)
        notes = job.expected(prepared.plan)
        return Conversion(scan, prepared.plan, stats, {}, {}, warnings, prepared.errors, notes)
    wanted = tuple(dict.fromkeys(targets)) if config.quantize else (FLOAT_TARGET,)
    reports: dict[str, Report] = {}
    with atomic_folder(destination) as work:
        prepared = job.prepare(decided, warnings, work)
        for target in wanted:
            folder = work if len(wanted) == 1 else work / target
            folder.mkdir(exist_ok=True)
            reports[target] = job.write(prepared, target, folder)
        prepared.store.remove()
    folders = {
        target: destination if len(wanted) == 1 else destination / target for target in wanted
    }
    return Conversion(scan, prepared.plan, stats, folders, reports, warnings, prepared.errors)


def default_output(source: Path) -> Path:
    """`<folder>-w4a8` beside an input folder, `<stem>-w4a8` beside an input file.

    For a model in a hub cache, which is no place to write, `<name>-w4a8` in the current folder.
    """
    if hub_repository(source) is not None:
        return Path.cwd() / f"{model_name(source).split('/')[-1]}-w4a8"
    resolved = source.absolute()  # a link's neighbours are those of the link
    return resolved.parent / f"{resolved.name if source.is_dir() else resolved.stem}-w4a8"


def _check_targets(targets: Sequence[str]) -> None:
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise FptqError(
            f"unknown target {', '.join(map(repr, unknown)) or '(none)'}: use one or more of "
            f"{', '.join(TARGETS)}"
        )


def _check_names(scan: LinearScan, config: Config, plan: Plan | None) -> None:
    """See before anything is measured that options and plan speak of linears of this model."""
    if plan is None:
        select(scan, "--ignore", config.ignore)
        select(scan, "--w8", config.w8)
        return
    if config.ignore:
        raise FptqError(
            "--ignore and --plan cannot be combined: give the linear scheme 'float' in the plan"
        )
    if config.w8:
        raise FptqError(
            "--w8 and --plan cannot be combined: give the linear weight_bits 8 in the plan"
        )
    plan.check_against(scan)


def _decide(
    scan: LinearScan, stats: ActivationStats, config: Config, plan: Plan | None
) -> tuple[Plan, tuple[str, ...]]:
    if plan is None:
        return choose_schemes(scan, stats, config), ()
    return complete_plan(plan, scan, stats)
