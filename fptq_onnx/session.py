"""ONNX Runtime sessions, made so that memory-mapped weights stay mapped."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from fptq_onnx.errors import FptqError

CUSTOM_DOMAIN = "fptq"
_ERROR_ONLY = 3


def session_options(*, threads: int = 0, custom_ops: bool = False) -> ort.SessionOptions:
    """Options for our own runs.

    Weights are not prepacked: a prepacked float matrix is a second copy of it in memory, which a
    run that is made once does not earn back.

    Args:
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        custom_ops: register the fptq library.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERROR_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_prepacking", "1")
    if custom_ops:
        from fptq_onnx.runtime import register

        register(options)
    return options


def open_session(file: Path, *, threads: int = 0, custom_ops: bool = False) -> ort.InferenceSession:
    """A session over a model file.

    Raises:
        FptqError: ONNX Runtime cannot run the model.
    """
    options = session_options(threads=threads, custom_ops=custom_ops)
    try:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises its own types, RuntimeError and ValueError
        raise FptqError(f"ONNX Runtime cannot run {file}: {_first_line(error)}") from error


def open_session_in_memory(
    model: ir.Model, data_folder: Path, *, threads: int = 0
) -> ort.InferenceSession:
    """A session over a model that is not in a file; its external data is read in place.

    Args:
        model: serialized without its external weights.
        data_folder: what the locations of its external tensors are relative to.
        threads: intra-op threads, 0 lets ONNX Runtime choose.

    Raises:
        FptqError: ONNX Runtime cannot run the model, or it is over 2 GB without external data.
    """
    options = session_options(threads=threads)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(data_folder.resolve())
    )
    try:
        serialized = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # protobuf: EncodeError or ValueError; ORT: its own types
        raise FptqError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
