"""The conversion, from an exported model to a W4A8 folder: the whole flow on one screen.

load -> normalize -> calibrate -> plan -> equalize -> quantize -> emit(target) -> save + verify
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fptq_onnx.calibration.stats import ActivationStats
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
from fptq_onnx.progress import tracker
from fptq_onnx.provenance import bits_per_weight, files_size, new_report, stamp
from fptq_onnx.report import Report, coverage_lines, human_bytes, scheme_lines
from fptq_onnx.runtime import library_path
from fptq_onnx.samples import Samples
from fptq_onnx.side_files import copy_side_files, copy_tokenizer
from fptq_onnx.solve_budget import solve_budget
from fptq_onnx.targets import EMITTERS, FLOAT_TARGET
from fptq_onnx.verify import verify
from fptq_onnx.weight_store import WeightStore

PLAN_FILE = "plan.json"


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
    _say(say, coverage_lines(scan))
    if not scan.linears:
        raise FptqError(
            f"no linear layer found in {loaded.file} ({scan.coverage}): nothing to quantize"
        )
    stats = samples.statistics(loaded, stats, threads=threads, quiet=quiet, say=say)
    decided, warnings = _decide(scan, stats, config, plan)
    if dry_run:
        _say(say, scheme_lines(decided), warnings)
        return Conversion(scan, decided, stats, {}, {}, warnings)
    job = _Job(
        loaded, scan, stats, config, samples, plan is not None, verify_samples, threads, quiet, say
    )
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
    return Conversion(scan, prepared.plan, stats, folders, reports, warnings)


@dataclass(frozen=True)
class _Prepared:
    """The equalized model with its quantized weights, before any target."""

    model: ir.Model
    plan: Plan
    store: WeightStore
    folded: tuple[str, ...]
    errors: tuple[LinearErrors, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """What stays the same through one conversion."""

    loaded: LoadedModel
    scan: LinearScan
    stats: ActivationStats
    config: Config
    samples: Samples
    replay: bool
    verify_samples: int
    threads: int
    quiet: bool
    say: Callable[[str], None]

    def prepare(self, plan: Plan, warnings: tuple[str, ...], work: Path) -> _Prepared:
        """Equalize and quantize: the paper's way, or by a walk through the model."""
        store = WeightStore(work / ".weights")
        model = load_model(self.loaded.file).model
        normalize(model)
        errors: tuple[LinearErrors, ...] = ()
        if self.config.walks or plan.walks:
            solved = solve_budget(
                self.loaded, self.scan, plan, self.stats, self.config,
                self.samples.open(self.loaded), store, work / ".values", replay=self.replay,
                threads=self.threads, quiet=self.quiet, say=self.say,
            )  # fmt: skip
            plan, errors = solved.plan, solved.errors
            folded = fold_scales(model, solved.scales)
        else:
            folded = equalize(model, plan, self.stats)
            if self.config.quantize:
                quantize_weights(model, plan, store, tracker("quantizing", self.quiet))
        _say(self.say, scheme_lines(plan), warnings)
        self.say(f"folded       {len(folded)} equalizations into the norms and linears before")
        return _Prepared(model, plan, store, folded, errors, warnings)

    def write(self, prepared: _Prepared, target: str, folder: Path) -> Report:
        """Write one target's folder, and compare it with the original."""
        plan, loaded, say = prepared.plan, self.loaded, self.say
        report = new_report(target, loaded, self.scan, plan, self.config, self.samples, self.stats)
        emitted = EMITTERS[target](prepared.model.clone(), plan, prepared.store, self.config)
        report = replace(
            report,
            folded=prepared.folded,
            errors=tuple(item.to_dict() for item in prepared.errors),
            notes=(*prepared.warnings, *emitted.notes),
            bits_per_weight=bits_per_weight(plan, emitted.model),
        )
        _say(say, emitted.lines)
        _say(say, [f"note         {text}" for text in emitted.notes])
        stamp(emitted.model, report)
        save_model(emitted.model, folder, tracker(f"writing {target}", self.quiet))
        (folder / PLAN_FILE).write_text(plan.to_json(), encoding="utf-8")
        report = replace(report, bytes_after=files_size(folder))
        say(
            f"written      {target}: {human_bytes(report.bytes_before)} -> "
            f"{human_bytes(report.bytes_after)}, {report.bits_per_weight:.2f} bits per weight"
        )
        copy_side_files(loaded.folder, folder, MODEL_FILE)
        if self.samples.tokenizer_folder is not None:
            copy_tokenizer(self.samples.tokenizer_folder, folder)
        if self.verify_samples:
            result = verify(loaded, folder, self.samples, self.verify_samples, threads=self.threads)
            say(result.line)
            report = replace(report, verification=result.as_dict())
        report.save(folder / REPORT_FILE)
        return report


def _say(say: Callable[[str], None], lines: Iterable[str], warnings: Iterable[str] = ()) -> None:
    for line in (*lines, *(f"warning      {text}" for text in warnings)):
        say(line)


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
