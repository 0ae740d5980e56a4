"""The conversion, from an exported model to a W4A8 folder: the whole flow on one screen.

load -> normalize -> calibrate -> plan -> equalize -> quantize -> emit(target) -> save + verify
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fptq_onnx.bit_budget import check_budget, measure_harm, spend_budget
from fptq_onnx.calibration.data import TokenWindows
from fptq_onnx.calibration.stats import ActivationStats
from fptq_onnx.calibration.whole_feeds import whole_feeds
from fptq_onnx.config import TARGETS, Config
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears import LinearScan, find_linears
from fptq_onnx.linear_errors import LinearErrors
from fptq_onnx.model_load import LoadedModel, load_model
from fptq_onnx.model_save import MODEL_FILE, save_model
from fptq_onnx.output_folder import REPORT_FILE, atomic_folder, check_output
from fptq_onnx.passes.choose_schemes import choose_schemes
from fptq_onnx.passes.complete_plan import complete_plan
from fptq_onnx.passes.equalize import equalize, fold_scales
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.passes.quantize_weights import quantize_weights
from fptq_onnx.plan import Plan
from fptq_onnx.progress import track
from fptq_onnx.provenance import bits_per_weight, files_size, new_report, stamp
from fptq_onnx.report import Report, coverage_lines, human_bytes, scheme_lines
from fptq_onnx.runtime import library_path
from fptq_onnx.samples import Samples
from fptq_onnx.side_files import copy_side_files, copy_tokenizer
from fptq_onnx.solve_weights import Solved, solve_weights
from fptq_onnx.targets import EMITTERS, FLOAT_TARGET, Emitted
from fptq_onnx.verify import verify
from fptq_onnx.weight_store import WeightStore

T = TypeVar("T")

PLAN_FILE = "plan.json"
_PROBE_WINDOWS = 8  # that a stage's share of the harm is measured on


@dataclass(frozen=True)
class Conversion:
    """What `convert` returns.

    scan: the linears found and the look-alikes left alone.
    plan: the decision for each linear.
    stats: the channel ranges the plan is based on.
    folders: the written folder of each target; empty after a dry run.
    reports: the report of each target; empty after a dry run.
    warnings: what a user should look at.
    """

    scan: LinearScan
    plan: Plan
    stats: ActivationStats
    folders: Mapping[str, Path]
    reports: Mapping[str, Report]
    warnings: tuple[str, ...]


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
    verify_samples: int = 8,
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
            of dicts, a CalibrationDataReader); by default random tokens from the vocabulary.
        config: thresholds, groups and what to leave alone.
        stats: statistics to use instead of calibrating; one path that does not exist yet is
            calibrated for and written, several are merged.
        plan: a plan to replay instead of deciding.
        overwrite: replace an output folder this tool wrote before.
        dry_run: stop after planning; nothing is written.
        verify_samples: samples to compare with the original on; 0 compares nothing.
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
    if verify_samples < 0 or threads < 0:
        raise FptqError("--verify-samples and --threads must not be negative")
    _check_targets(targets)
    source = Path(model)
    loaded = load_model(source)
    destination = default_output(source) if output is None else Path(output)
    if not dry_run:
        check_output(source, destination, overwrite=overwrite)
        if "custom" in targets and verify_samples and config.quantize:
            library_path()  # better refused now than when the written model is to be run
    normalize(loaded.model)
    scan = find_linears(loaded.model)
    for line in coverage_lines(scan):
        say(line)
    if not scan.linears:
        raise FptqError(
            f"no linear layer found in {loaded.file} ({scan.coverage}): nothing to quantize"
        )
    stats = samples.statistics(loaded, stats, threads=threads, quiet=quiet, say=say)
    decided, warnings = _decide(scan, stats, config, plan)
    walks = config.walks and not dry_run
    for line in (
        () if walks else (*scheme_lines(decided), *(f"warning      {text}" for text in warnings))
    ):
        say(line)
    if dry_run:
        return Conversion(scan, decided, stats, {}, {}, warnings)
    wanted = tuple(dict.fromkeys(targets)) if config.quantize else (FLOAT_TARGET,)
    reports: dict[str, Report] = {}
    with atomic_folder(destination) as work:
        prepared = load_model(loaded.file).model
        normalize(prepared)
        store = WeightStore(work / ".weights")
        errors: tuple[LinearErrors, ...] = ()
        if walks:
            solved = _solve(
                loaded, scan, decided, stats, config, samples, store, work,
                replay=plan is not None, threads=threads, quiet=quiet, say=say,
            )  # fmt: skip
            decided, errors = solved.plan, solved.errors
            for line in (*scheme_lines(decided), *(f"warning      {text}" for text in warnings)):
                say(line)
            folded = fold_scales(prepared, solved.scales)
        else:
            folded = equalize(prepared, decided, stats)
            if config.quantize:
                quantize_weights(prepared, decided, store, _tracker("quantizing", quiet))
        say(f"folded       {len(folded)} equalizations into the norms and linears before")
        for target in wanted:
            folder = work if len(wanted) == 1 else work / target
            folder.mkdir(exist_ok=True)
            report = new_report(target, loaded, scan, decided, config, samples, stats)
            emitted = EMITTERS[target](prepared.clone(), decided, store, config)
            report = replace(
                report,
                folded=folded,
                errors=tuple(item.to_dict() for item in errors),
                notes=(*warnings, *emitted.notes),
                bits_per_weight=bits_per_weight(decided, emitted.model),
            )
            report = _write(emitted, report, decided, folder, quiet=quiet, say=say)
            copy_side_files(loaded.folder, folder, MODEL_FILE)
            if samples.tokenizer_folder is not None:
                copy_tokenizer(samples.tokenizer_folder, folder)
            if verify_samples:
                result = verify(loaded, folder, samples, verify_samples, threads=threads)
                say(result.line)
                report = replace(report, verification=result.as_dict())
            report.save(folder / REPORT_FILE)
            reports[target] = report
        store.remove()
    folders = {
        target: destination if len(wanted) == 1 else destination / target for target in wanted
    }
    return Conversion(scan, decided, stats, folders, reports, warnings)


def _solve(
    loaded: LoadedModel,
    scan: LinearScan,
    plan: Plan,
    stats: ActivationStats,
    config: Config,
    samples: Samples,
    store: WeightStore,
    work: Path,
    *,
    replay: bool,
    threads: int,
    quiet: bool,
    say: Callable[[str], None],
) -> Solved:
    """Walk the model; with a budget, a second time with the linears widened that need it most."""
    source = samples.open(loaded)
    feeds = whole_feeds(loaded, source)

    def walk(start: Plan, what: str, *, try_wider: bool = False) -> Solved:
        values = work / ".values"
        solved = solve_weights(
            loaded, scan, start, stats, config, feeds, store, values,
            replay=replay, try_wider=try_wider, threads=threads, track=_tracker(what, quiet),
        )  # fmt: skip
        shutil.rmtree(values)
        return solved

    if config.bits_budget is None:
        return walk(plan, "quantizing")
    if not isinstance(source, TokenWindows):
        raise FptqError("--bits-budget needs token samples (text or random), not feeds: use --w8")
    check_budget(plan, config.bits_budget)
    first = walk(plan, "quantizing", try_wider=True)
    stages, harm = measure_harm(
        loaded, scan, first.plan, first.scales, store, source.windows[:_PROBE_WINDOWS],
        threads=threads, track=_tracker("probing", quiet),
    )  # fmt: skip
    wider = spend_budget(plan, stages, harm, first.ratios, config.bits_budget)
    pairs = list(zip(plan.linears, wider.linears, strict=True))
    say(
        f"budget       {config.bits_budget:g} bits on average: "
        f"{sum(a.weight_bits < b.weight_bits for a, b in pairs)} linears get 8 bits, "
        f"{sum(a.symmetric > b.symmetric for a, b in pairs)} zero points, "
        f"{sum(a.block_size > b.block_size > 0 for a, b in pairs)} smaller blocks"
    )
    return walk(wider, "quantizing anew")


def _write(
    emitted: Emitted,
    report: Report,
    plan: Plan,
    folder: Path,
    *,
    quiet: bool,
    say: Callable[[str], None],
) -> Report:
    """Write one target's model and plan; the report with what is known afterwards."""
    for line in (*emitted.lines, *(f"note         {text}" for text in emitted.notes)):
        say(line)
    stamp(emitted.model, report)
    save_model(emitted.model, folder, _tracker(f"writing {report.target}", quiet))
    (folder / PLAN_FILE).write_text(plan.to_json(), encoding="utf-8")
    report = replace(report, bytes_after=files_size(folder))
    say(
        f"written      {report.target}: {human_bytes(report.bytes_before)} -> "
        f"{human_bytes(report.bytes_after)}, {report.bits_per_weight:.2f} bits per weight"
    )
    return report


def default_output(source: Path) -> Path:
    """`<folder>-w4a8` beside an input folder, `<stem>-w4a8` beside an input file."""
    resolved = source.resolve()
    return resolved.parent / f"{resolved.name if source.is_dir() else resolved.stem}-w4a8"


def _check_targets(targets: Sequence[str]) -> None:
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise FptqError(
            f"unknown target {', '.join(map(repr, unknown)) or '(none)'}: use one or more of "
            f"{', '.join(TARGETS)}"
        )


def _decide(
    scan: LinearScan, stats: ActivationStats, config: Config, plan: Path | Plan | None
) -> tuple[Plan, tuple[str, ...]]:
    if plan is None:
        return choose_schemes(scan, stats, config), ()
    if config.ignore:
        raise FptqError(
            "--ignore and --plan cannot be combined: give the linear scheme 'float' in the plan"
        )
    if config.w8:
        raise FptqError(
            "--w8 and --plan cannot be combined: give the linear weight_bits 8 in the plan"
        )
    loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    return complete_plan(loaded, scan, stats)


def _tracker(what: str, quiet: bool) -> Callable[[Iterable[T], int], Iterator[T]]:
    return lambda items, total: track(items, total=total, what=what, quiet=quiet)
