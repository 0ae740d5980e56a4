"""Whether ONNX Runtime takes a model, found out before the work instead of at its end."""

from __future__ import annotations

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.model_load import LoadedModel
from fptq_onnx.session import open_session_in_memory


def check_accepted(loaded: LoadedModel) -> None:
    """Open the model in ONNX Runtime as calibration does, and close it.

    Without rewriting the graph this takes little more than reading it: external weights are mapped.

    Args:
        loaded: as it is run: normalized, for bfloat16 is not computed in.

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
