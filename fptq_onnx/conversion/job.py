"""One conversion at work: decide and quantize once, then write each target and check it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.calibration.data import Source
from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.float_tensors import (
    all_bytes,
    expected_floats,
    float_notes,
    float_tensors,
)
from fptq_onnx.conversion.graph_optimization import optimize_graph
from fptq_onnx.conversion.graph_optimization_check import check_graph_optimization
from fptq_onnx.conversion.int8_kv_cache import quantize_written_caches
from fptq_onnx.conversion.provenance import bits_per_weight, files_size, new_report, stamp
from fptq_onnx.conversion.quality_gate import Gate
from fptq_onnx.conversion.report import Report, scheme_lines
from fptq_onnx.conversion.targets import FLOAT_TARGET, emit
from fptq_onnx.conversion.verify import verify
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.scaled_outputs import scaled_outputs
from fptq_onnx.graph.linears.linears import LinearScan
from fptq_onnx.graph.linears.roles import find_blocks
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.model_io.output_folder import REPORT_FILE
from fptq_onnx.model_io.save import MODEL_FILE, save_model
from fptq_onnx.model_io.tokenizer_files import copy_side_files, copy_tokenizer
from fptq_onnx.passes import Pass, apply
from fptq_onnx.passes.choose_schemes import massive_notes
from fptq_onnx.passes.equalize import equalize
from fptq_onnx.passes.fold_into_producers import fold_into_producers
from fptq_onnx.passes.normalize import normalize
from fptq_onnx.passes.quantize_weights import quantize_weights
from fptq_onnx.passes.widen_bfloat16 import narrow_interface
from fptq_onnx.progress import human_bytes, tracker
from fptq_onnx.quantization.bit_budget import quantize_within_budget
from fptq_onnx.quantization.from_statistics import needs_tokens, quantize_from_statistics
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.mixed_precision import planned_bits
from fptq_onnx.runtime.native_library import library_path
from fptq_onnx.scheme.activation_stats import ActivationStats
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import FLOAT, Plan
from fptq_onnx.scheme.weight_store import WeightStore

PLAN_FILE = "plan.json"
_BITS_SHOWN = 0.005  # less is not seen in what is printed


@dataclass(frozen=True)
class Prepared:
    """The equalized model with its quantized weights, before any target."""

    model: ir.Model
    plan: Plan
    store: WeightStore
    folded: tuple[str, ...]
    errors: tuple[LinearErrors, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What stays the same through one conversion."""

    loaded: LoadedModel
    scan: LinearScan
    stats: ActivationStats
    config: Config
    samples: Samples
    replay: bool
    measure_errors: bool
    verify_samples: int
    gate: Gate
    threads: int
    quiet: bool
    say: Callable[[str], None]
    raised: tuple[str, ...] = ()

    def rehearse(self, plan: Plan, warnings: tuple[str, ...]) -> Prepared:
        """Decide as for real, and keep nothing but the decisions."""
        with tempfile.TemporaryDirectory() as work:
            if self.needs_sequential(plan) or not self._ranges_decide:
                return self.prepare(plan, warnings, Path(work))
            say_all(self.say, scheme_lines(plan), warnings)
            return Prepared(self.loaded.model, plan, WeightStore(Path(work)), (), (), warnings)

    def expected(self, plan: Plan) -> tuple[str, ...]:
        """What will stay in floats, said and returned."""
        quantized = (entry for entry in plan.linears if entry.scheme != FLOAT)
        first = {entry.name: self.scan.shared.get(entry.name, entry.name) for entry in quantized}
        sizes = {
            first[entry.name]: planned_bits(entry) / 8
            for entry in plan.linears
            if entry.name in first
        }
        notes = expected_floats(
            self.loaded.model, self.scan, plan, self.config, sum(sizes.values())
        )
        say_all(self.say, [f"note         {text}" for text in notes])
        return notes

    def needs_sequential(self, plan: Plan) -> bool:
        """Whether the model must be run layer group by layer group."""
        if self.config.needs_sequential or plan.needs_sequential or self.measure_errors:
            return True
        return not self.replay and needs_tokens(self.scan, self.stats, self.config)

    @property
    def _ranges_decide(self) -> bool:
        """Whether the plan is as it will be; else `quantize_from_statistics` completes it."""
        return self.replay or self.config.of_paper

    @property
    def source(self) -> Source:
        """The samples; those that the model writes are written now if they were not yet."""
        return self.samples.open(self.loaded, threads=self.threads, quiet=self.quiet)

    def prepare(self, plan: Plan, warnings: tuple[str, ...], work: Path) -> Prepared:
        """Equalize and quantize: the paper's way, or by a walk through the model."""
        store = WeightStore(work / ".weights")
        model = load_model(self.loaded.file).model
        widened = _widened_note(narrow_interface(model))
        normalize(model)
        errors: tuple[LinearErrors, ...] = ()
        routing: tuple[str, ...] = ()
        if self.needs_sequential(plan):
            result = quantize_within_budget(
                self.loaded, self.scan, plan, self.stats, self.config,
                self.source, store, work / ".values", replay=self.replay,
                threads=self.threads, quiet=self.quiet, say=self.say,
            )  # fmt: skip
            plan, errors, routing = result.plan, result.errors, result.notes
            folded = _folded(model, partial(fold_into_producers, scales=result.scales))
        elif self._ranges_decide:
            folded = _folded(model, partial(equalize, plan=plan, stats=self.stats))
            if self.config.quantize:
                quantize_weights(model, plan, store, tracker("quantizing", self.quiet))
        else:
            result = quantize_from_statistics(
                self.loaded, self.scan, plan, self.stats, self.config, store,
                track=tracker("quantizing", self.quiet),
            )  # fmt: skip
            plan = result.plan
            folded = _folded(model, partial(fold_into_producers, scales=result.scales))
        say_all(self.say, scheme_lines(plan), warnings)
        self.say(f"folded       {len(folded)} equalizations into the norms and linears before")
        massive = () if self.replay else massive_notes(plan)
        before = (*self.loaded.notes, *self.raised)
        notes = (*before, *widened, *routing, *massive, *self._optimize_graph(model))
        return Prepared(model, plan, store, folded, errors, warnings, notes)

    def _optimize_graph(self, model: ir.Model) -> tuple[str, ...]:
        """Rewrite in place what gives the same outputs in the original; notes."""
        if not self.config.optimize_graph:
            return ()
        checked = check_graph_optimization(
            self.loaded,
            lambda: self.samples.drawn(self.loaded, threads=self.threads),
            threads=self.threads,
        )
        checked = replace(checked, done=optimize_graph(model, checked.names))
        say_all(self.say, checked.lines)
        return checked.notes

    def write(self, prepared: Prepared, target: str, folder: Path) -> Report:
        """Write one target's folder, and compare it with the original."""
        plan, loaded, say = prepared.plan, self.loaded, self.say
        blocks = find_blocks(self.scan.linears)
        report = new_report(target, loaded, self.scan, plan, self.config, self.samples, self.stats)
        emitted = emit(target, prepared.model.clone(), plan, prepared.store, self.config)
        floats = [] if target == FLOAT_TARGET else float_tensors(emitted.model)
        size = all_bytes(emitted.model)
        report = replace(
            report,
            folded=prepared.folded,
            errors=tuple(
                {**item.to_dict(), **asdict(blocks[item.name])} for item in prepared.errors
            ),
            notes=(*prepared.warnings, *prepared.notes, *emitted.notes, *float_notes(floats, size)),
            stays_float=tuple(asdict(tensor) for tensor in floats),
            bits_per_weight=bits_per_weight(plan, emitted.model, self.scan.shared),
        )
        budget = self.config.bits_budget
        if budget is not None and report.bits_per_weight > budget + _BITS_SHOWN:
            text = (
                f"target {target} stores {report.bits_per_weight:.2f} bits per weight, above "
                f"--bits-budget {budget:g}, which counts what target custom stores"
            )
            report = replace(report, notes=(*report.notes, text))
        say_all(say, emitted.lines)
        say_all(say, [f"note         {text}" for text in report.notes[len(prepared.warnings) :]])
        stamp(emitted.model, report)
        save_model(emitted.model, folder, tracker(f"writing {target}", self.quiet))
        report = self._quantize_caches(emitted.model, folder, report)
        (folder / PLAN_FILE).write_text(plan.to_json(), encoding="utf-8")
        report = report.with_size(files_size(folder))
        say(
            f"written      {target}: {human_bytes(report.bytes_before)} -> "
            f"{human_bytes(report.bytes_after)}, {report.bits_per_weight:.2f} bits per weight"
        )
        copy_side_files(loaded.folder, folder, MODEL_FILE, self._library(emitted.model))
        if self.samples.tokenizer_folder is not None:
            copy_tokenizer(self.samples.tokenizer_folder, folder)
        if self.verify_samples:
            result = verify(
                loaded, folder, self.samples, self.verify_samples, threads=self.threads,
                quiet=self.quiet, divided=scaled_outputs(self.scan.linears, prepared.folded),
            )  # fmt: skip
            say(result.line)
            self.gate.check(target, result)
            report = report.with_verification(result.as_dict())
        report.save(folder / REPORT_FILE)
        return report

    def _quantize_caches(self, model: ir.Model, folder: Path, report: Report) -> Report:
        """The int8 cache, where it is wanted; it is measured on what was written."""
        if self.config.kv_cache != "int8":
            return report
        done, declined = quantize_written_caches(
            model, folder / MODEL_FILE, self.loaded, self.samples,
            threads=self.threads, quiet=self.quiet,
        )  # fmt: skip
        self.say(f"KV cache     int8 in {done} attentions, a scale for every channel")
        say_all(self.say, [f"note         {text}" for text in declined])
        return replace(report, notes=(*report.notes, *declined))

    def _library(self, model: ir.Model) -> Path | None:
        """Our library if the model needs it; a conversion that is not checked can do without."""
        if FPTQ_DOMAIN not in model.opset_imports:
            return None
        try:
            return library_path()
        except FptqError as error:
            self.say(f"note         onnxruntime-genai will miss our library: {error}")
            return None


def _folded(model: ir.Model, fold: Pass) -> tuple[str, ...]:
    """Run the pass that folds smoothing scales; names of the norms and linears that took them."""
    ((_, result),) = apply(model, [fold]).results
    return result.names


def _widened_note(names: tuple[str, ...]) -> tuple[str, ...]:
    """What users of a bfloat16 model must know: its callers have to feed and take float32."""
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"inputs and outputs of type bfloat16 are float32 in the result ({shown}): ONNX Runtime's "
        "CPU kernels do not compute in bfloat16",
    )


def notes_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but for notes that were said before: targets have most of them in common."""
    said: set[str] = set()

    def line(text: str) -> None:
        if text.startswith("note "):
            if text in said:
                return
            said.add(text)
        say(text)

    return line


def say_all(say: Callable[[str], None], lines: Iterable[str], warnings: Iterable[str] = ()) -> None:
    """Say lines, then warnings."""
    for line in (*lines, *(f"warning      {text}" for text in warnings)):
        say(line)
