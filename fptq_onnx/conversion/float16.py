"""The recipe fp16: ONNX Runtime's own converter to float16, in an output folder like any other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from fptq_onnx.calibration.samples import Samples
from fptq_onnx.conversion.check_input import check_input
from fptq_onnx.conversion.job import say_all
from fptq_onnx.conversion.provenance import files_size, stamp
from fptq_onnx.conversion.quality_gate import Gate
from fptq_onnx.conversion.raised_opset_check import check_raised
from fptq_onnx.conversion.report import Report
from fptq_onnx.conversion.verify import verify
from fptq_onnx.errors import FptqError
from fptq_onnx.model_io.load import LoadedModel, load_model
from fptq_onnx.model_io.output_folder import REPORT_FILE, atomic_folder, check_output
from fptq_onnx.model_io.save import MODEL_FILE, save_model
from fptq_onnx.model_io.tokenizer_files import copy_side_files
from fptq_onnx.progress import human_bytes, tracker
from fptq_onnx.scheme.recipes import FLOAT16
from fptq_onnx.version import __version__

# One protobuf message, which the converter works on, cannot be larger.
_PROTOBUF_LIMIT = (1 << 31) - 1


def convert_float16(
    source: Path,
    output: Path,
    *,
    samples: Samples,
    overwrite: bool = False,
    verify_samples: int = 8,
    gate: Gate | None = None,
    threads: int = 0,
    quiet: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Write the model with weights and activations in float16; inputs and outputs keep their types.

    Args:
        source: a .onnx file or a folder with one.
        output: the folder to write.
        samples: to compare on.
        overwrite: replace an output folder this tool wrote before.
        verify_samples: samples to compare with the original on, 0 for none.
        gate: refuse results that are worse.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        quiet: show no progress.
        say: receives lines for people.

    Returns:
        What was done.

    Raises:
        FptqError: the model is in float16 already or larger than 2 GiB, cannot be converted, or
            misses the gate.
    """
    loaded = load_model(source)
    check_output(source, output, overwrite=overwrite)
    _check_floats(loaded)
    check_input(loaded)
    say_all(say, [f"note         {text}" for text in loaded.notes])
    scan = loaded.linears
    notes = check_raised(loaded, lambda: samples.open(loaded), say, threads=threads)
    with atomic_folder(output) as folder:
        model = ir.from_proto(_half(loaded))
        model.graph.sort()  # the converter puts its casts at the end
        report = Report(
            version=__version__,
            target=FLOAT16,
            source={"file": loaded.file.name, "sha256": loaded.sha256()},
            options={"recipe": FLOAT16},
            linears=len(scan.linears),
            matmul_like=len(scan.linears) + len(scan.others),
            others=(),
            schemes={},
            folded=(),
            bits_per_weight=16.0,
            bytes_before=loaded.bytes,
            bytes_after=0,
            notes=notes,
        )
        stamp(model, report)
        save_model(model, folder, tracker("writing fp16", quiet))
        copy_side_files(loaded.folder, folder, MODEL_FILE)
        if any(graph is not model.graph for graph in model.graphs()):
            _try_apart(folder / MODEL_FILE)
        report = report.with_size(files_size(folder))
        say(
            f"written      {FLOAT16}: {human_bytes(report.bytes_before)} -> "
            f"{human_bytes(report.bytes_after)}, 16 bits per weight"
        )
        if verify_samples:
            result = verify(loaded, folder, samples, verify_samples, threads=threads)
            say(result.line)
            if gate is not None:
                gate.check(FLOAT16, result)
            report = report.with_verification(result.as_dict())
        report.save(folder / REPORT_FILE)
    return report


def _try_apart(file: Path) -> None:
    """Open the model in a process of its own: with float16 in loops, ONNX Runtime may die of it.

    Raises:
        FptqError: it did.
    """
    text = (
        "import sys, onnxruntime as ort\n"
        "ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run([sys.executable, "-c", text, file], capture_output=True, check=False)
    if done.returncode < 0:  # what it says itself is said where the model is compared
        raise FptqError(
            "ONNX Runtime crashes on the float16 model (signal "
            f"{-done.returncode}): leave recipe fp16 out"
        )


def _check_floats(loaded: LoadedModel) -> None:
    tensors = [value.const_value for value in loaded.model.graph.initializers.values()]
    if not any(tensor is not None and tensor.dtype == ir.DataType.FLOAT for tensor in tensors):
        raise FptqError(f"{loaded.file} has no float32 weights: it is in 16 bits already")


def _half(loaded: LoadedModel) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if loaded.bytes > _PROTOBUF_LIMIT:
        raise FptqError(
            f"{loaded.file} is larger than 2 GiB, which ONNX Runtime's float16 converter cannot "
            f"take: export it in float16 instead"
        )
    proto = ir.to_proto(ir.external_data.load_to_model(loaded.model.clone()))
    try:
        # Its shape inference knows none of ONNX Runtime's own ops; types are all it needs.
        converted: onnx.ModelProto = convert_float_to_float16(
            proto, keep_io_types=True, disable_shape_infer=True
        )
    except Exception as error:  # it raises whatever it meets
        raise FptqError(f"ONNX Runtime cannot convert {loaded.file} to float16: {error}") from error
    return converted
