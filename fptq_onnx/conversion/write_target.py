"""Write one target of a prepared model: emit, save, verify, report."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import onnx_ir as ir

from fptq_onnx.conversion.float_tensors import all_bytes, float_notes, float_tensors
from fptq_onnx.conversion.int8_kv_cache import quantize_written_caches
from fptq_onnx.conversion.options import Options
from fptq_onnx.conversion.provenance import bits_per_weight, files_size, new_report, stamp
from fptq_onnx.conversion.quantize_model import Prepared
from fptq_onnx.conversion.report import Report
from fptq_onnx.conversion.targets import FLOAT_TARGET, Emitted, emit
from fptq_onnx.conversion.verify import verify
from fptq_onnx.errors import FptqError
from fptq_onnx.graph.folding.scaled_outputs import scaled_outputs
from fptq_onnx.graph.linears.roles import find_blocks
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.model_io.output_folder import REPORT_FILE
from fptq_onnx.model_io.save import MODEL_FILE, save_model
from fptq_onnx.model_io.tokenizer_files import copy_side_files, copy_tokenizer
from fptq_onnx.progress import human_bytes
from fptq_onnx.runtime.native_library import library_path
from fptq_onnx.runtime.run_context import RunContext

PLAN_FILE = "plan.json"
_BITS_SHOWN = 0.005  # half of the last digit printed: less is not seen


def write_target(prepared: Prepared, target: str, folder: Path, options: Options) -> Report:
    """Write one target's folder, and compare it with the original.

    Args:
        prepared: the model; not changed.
        target: one of config.TARGETS, or FLOAT_TARGET.
        folder: exists; in the making, so that nothing is left of it after an error.
        options: of the conversion.

    Raises:
        FptqError: the target cannot hold the model, or it is further from the original than the
            gate allows.
    """
    log, loaded = options.context.log, prepared.task.loaded
    emitted = emit(target, prepared.model.clone(), prepared.plan, prepared.store, options.config)
    report = _report(prepared, emitted, target, options)
    options.context.log_all(emitted.lines)
    options.context.log_all(
        f"note         {text}" for text in report.notes[len(prepared.warnings) :]
    )
    stamp(emitted.model, report)
    save_model(emitted.model, folder, options.context.tracker(f"writing {target}"))
    report = _quantize_caches(emitted.model, folder, report, prepared, options)
    (folder / PLAN_FILE).write_text(prepared.plan.to_json(), encoding="utf-8")
    report = report.with_size(files_size(folder))
    log(
        f"written      {target}: {human_bytes(report.bytes_before)} -> "
        f"{human_bytes(report.bytes_after)}, {report.bits_per_weight:.2f} bits per weight"
    )
    library = _library(emitted.model, options.context)
    copy_side_files(loaded.folder, folder, MODEL_FILE, library)
    if options.samples.tokenizer_folder is not None:
        copy_tokenizer(options.samples.tokenizer_folder, folder)
    report = _verified(report, prepared, target, folder, options)
    report.save(folder / REPORT_FILE)
    return report


def _report(prepared: Prepared, emitted: Emitted, target: str, options: Options) -> Report:
    """What is known before the model is written."""
    task, config = prepared.task, options.config
    blocks = find_blocks(task.scan.linears)
    floats = [] if target == FLOAT_TARGET else float_tensors(emitted.model)
    report = new_report(
        target, task.loaded, task.scan, prepared.plan, config, options.samples, task.stats
    )
    bits = bits_per_weight(prepared.plan, emitted.model, task.scan.shared)
    notes = [*prepared.warnings, *prepared.notes, *emitted.notes]
    notes += float_notes(floats, all_bytes(emitted.model))
    if config.target_bits is not None and bits > config.target_bits + _BITS_SHOWN:
        notes.append(
            f"target {target} stores {bits:.2f} bits per weight, above "
            f"--target-bits {config.target_bits:g}, which counts what target custom stores"
        )
    return replace(
        report,
        folded=prepared.folded,
        errors=tuple({**item.to_dict(), **asdict(blocks[item.name])} for item in prepared.errors),
        notes=tuple(notes),
        stays_float=tuple(asdict(tensor) for tensor in floats),
        bits_per_weight=bits,
    )


def _quantize_caches(
    model: ir.Model, folder: Path, report: Report, prepared: Prepared, options: Options
) -> Report:
    """The int8 cache, where it is wanted; it is measured on what was written."""
    if options.config.kv_cache != "int8":
        return report
    context = options.context
    done, declined = quantize_written_caches(
        model, folder / MODEL_FILE, prepared.task.loaded, options.samples, context
    )
    context.log(f"KV cache     int8 in {done} attentions, a scale for every channel")
    context.log_all(f"note         {text}" for text in declined)
    return replace(report, notes=(*report.notes, *declined))


def _verified(
    report: Report, prepared: Prepared, target: str, folder: Path, options: Options
) -> Report:
    """The report with how far the written model is from the original, where that is asked for."""
    if not options.verify_samples:
        return report
    context, task = options.context, prepared.task
    result = verify(
        task.loaded, folder, options.samples, options.verify_samples, context,
        divided=scaled_outputs(task.scan.linears, prepared.folded),
    )  # fmt: skip
    context.log(result.line)
    options.gate.check(target, result)
    return report.with_verification(result.as_dict())


def _library(model: ir.Model, context: RunContext) -> Path | None:
    """Our library if the model needs it; a conversion that is not checked can do without."""
    if FPTQ_DOMAIN not in model.opset_imports:
        return None
    try:
        return library_path()
    except FptqError as error:
        context.log(f"note         onnxruntime-genai will miss our library: {error}")
        return None
