"""What is wrong with a model, found out before the work instead of in it or at its end."""

from __future__ import annotations

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.session import open_session_in_memory
from fptq_onnx.side_files import check_side_files
from fptq_onnx.weight_values import check_weights


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

    Without rewriting the graph this takes little more than reading it: external weights are mapped.

    Raises:
        FptqError: ONNX Runtime refuses it; its reason is told.
    """
    forget_pages(loaded.model.graph.initializers.values())
    try:
        open_session_in_memory(loaded.model, loaded.data_folder, threads=1, optimize=False)
    except FptqError:
        # What it cannot run as it is, it may run rewritten.
        try:
            open_session_in_memory(loaded.model, loaded.data_folder, threads=1)
        except FptqError as error:
            raise FptqError(
                f"{loaded.file}: {error}; the model itself is at fault: export it again"
            ) from error
