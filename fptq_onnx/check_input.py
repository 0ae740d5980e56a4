"""What is wrong with a model, found out before the work instead of in it or at its end."""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.session import open_session_in_memory
from fptq_onnx.side_files import check_side_files
from fptq_onnx.weight_values import check_weights

_LARGEST_VISIBLE = 1 << 16  # bytes; what ONNX Runtime infers shapes from is far smaller


def check_input(loaded: LoadedModel) -> None:
    """See that a model can be converted: its files are there, it runs, and its weights are numbers.

    Args:
        loaded: as it is run: normalized, for bfloat16 is not computed in.

    Raises:
        FptqError: a file beside it was not downloaded, ONNX Runtime refuses the model, or a weight
            holds NaN or infinity.
    """
    check_side_files(loaded.folder)
    check_accepted(loaded)
    check_weights(loaded.file, loaded.model)


def check_accepted(loaded: LoadedModel) -> None:
    """Open the model in ONNX Runtime as calibration does, and close it.

    Without rewriting the graph this takes little more than reading it: external weights are mapped,
    and large ones inside the file become inputs, or they would be copied several times over.

    Raises:
        FptqError: ONNX Runtime refuses it; its reason is told.
    """
    forget_pages(loaded.model.graph.initializers.values())
    try:
        light = _without_large_weights(loaded.model)
        open_session_in_memory(light, loaded.data_folder, threads=1, optimize=False)
    except FptqError:
        # What it cannot run so, it may run rewritten, and with its weights as constants.
        try:
            open_session_in_memory(loaded.model, loaded.data_folder, threads=1)
        except FptqError as error:
            raise FptqError(
                f"{loaded.file}: {error}; the model itself is at fault: export it again"
            ) from error


def _without_large_weights(model: ir.Model) -> ir.Model:
    """A copy of the graph in which large weights that are in memory are inputs."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.nbytes > _LARGEST_VISIBLE and not value.is_graph_output():
            del light.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            light.graph.inputs.append(value)
    return light
