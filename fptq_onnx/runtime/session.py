"""ONNX Runtime sessions, with our operators registered only where a model uses them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnxruntime as ort
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.model_io.model_proto import needs_help, read_proto
from fptq_onnx.runtime.thread_count import check_threads

if TYPE_CHECKING:
    import onnx_ir as ir

_FEW_ELEMENTS = 64
_FATAL_ONLY = 4  # what goes wrong comes as an exception as well, and is told once


def session_options(*, threads: int = 0, custom_ops: bool = False) -> ort.SessionOptions:
    """Options for our own runs, made so that memory-mapped weights stay mapped.

    Weights are not prepacked: a prepacked float matrix is a second copy of it in memory, which a
    run that is made once does not earn back.

    Args:
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        custom_ops: register the fptq library.

    Raises:
        FptqError: more threads than make sense.
    """
    check_threads(threads)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_prepacking", "1")
    if custom_ops:
        from fptq_onnx.runtime.native_library import register

        register(options)
    return options


def open_session(
    path: Path, *, threads: int | None = None, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """A session over a model file; our library is registered if the model imports its domain.

    Args:
        path: the .onnx file; its external data are looked for beside it.
        threads: intra-op threads; None leaves what the options say, 0 lets ONNX Runtime choose.
        options: session options such as `session_options` gives, without our library; they are
            changed by this call. By default ONNX Runtime's own, with prepacking: the fast ones.

    Raises:
        FptqError: no such file, not a model, ONNX Runtime refuses it, it needs our library and
            that is missing, or more threads than make sense.
    """
    check_threads(threads)
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    proto = read_proto(path)
    if FPTQ_DOMAIN in {entry.domain for entry in proto.opset_import}:
        from fptq_onnx.runtime.native_library import (
            register,  # only then: the library may not be there
        )

        register(options)
    helped = needs_help(proto, path)
    del proto
    try:
        source = _helped(path, options) if helped else str(path)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except FptqError:
        raise
    except Exception as error:  # ORT raises its own types, RuntimeError and ValueError
        raise FptqError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error


def _helped(path: Path, options: ort.SessionOptions) -> bytes:
    """A model whose external data ONNX Runtime does not find by the names in its file."""
    import onnx_ir as ir  # it is the exception, and reads the model again

    from fptq_onnx.model_io.load import load_model

    loaded = load_model(path, allow_quantized=True)
    place_data(options, loaded.data_folder)
    serialized: bytes = ir.to_proto(loaded.model).SerializeToString()
    return serialized


def place_data(options: ort.SessionOptions, folder: Path) -> None:
    """Say what the locations of external data are relative to, for a model that is no file."""
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )


def open_session_in_memory(
    model: ir.Model, data_folder: Path, *, threads: int = 0, optimize: bool = True
) -> ort.InferenceSession:
    """A session over a model that is not in a file; its external data is read in place.

    Args:
        model: serialized without its external weights, but for the small ones.
        data_folder: what the locations of its external tensors are relative to.
        threads: intra-op threads, 0 lets ONNX Runtime choose.
        optimize: let it rewrite the graph; a session that is only to be opened needs none of that.

    Raises:
        FptqError: ONNX Runtime cannot run the model, or it is over 2 GB without external data.
    """
    import onnx_ir as ir  # whoever has such a model has imported it

    options = session_options(threads=threads)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    place_data(options, data_folder)
    try:
        proto = ir.to_proto(model)
        _bring_small_in(proto.graph, data_folder)
        serialized = proto.SerializeToString()
        return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # protobuf: EncodeError or ValueError; ORT: its own types
        raise FptqError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error


def _bring_small_in(graph: onnx.GraphProto, folder: Path) -> None:
    """Load small external tensors: shape inference looks at axes and sizes, and not into files."""
    for tensor in graph.initializer:
        if uses_external_data(tensor) and math.prod(tensor.dims) <= _FEW_ELEMENTS:
            load_external_data_for_tensor(tensor, str(folder))
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _bring_small_in(attribute.g, folder)


def opset_domains(path: Path) -> set[str]:
    """The operator domains a model file imports ("" is ai.onnx's).

    Raises:
        FptqError: no such file, or it is not an ONNX model.
    """
    return {entry.domain for entry in read_proto(path).opset_import}


def first_line(error: BaseException) -> str:
    """The first line of an ONNX Runtime message, which goes on with C++ detail."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
