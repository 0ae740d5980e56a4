"""Export with optimum-onnx: decoders with a KV cache, encoders with hidden states or a head."""

from __future__ import annotations

from pathlib import Path

from fptq_onnx.errors import FptqError

_OPSET = 18


def export_with_optimum(source: Path, folder: Path, task: str) -> None:
    """Write model.onnx, with its data beside it from 2 GB on.

    Args:
        source: the Hugging Face folder.
        folder: exists.
        task: as optimum calls it, see tasks.py.

    Raises:
        FptqError: optimum does not know the architecture.
    """
    from optimum.exporters.onnx import main_export

    try:
        main_export(
            str(source),
            folder,
            task=task,
            library_name="transformers",
            opset=_OPSET,
            do_validation=False,  # the caller compares with torch itself
            local_files_only=True,
        )
    except (ValueError, KeyError) as error:
        text = str(error)
        if "unsupported architecture" in text or "is not supported" in text:
            raise FptqError(
                "optimum-onnx does not support this architecture: try --exporter genai or dynamo"
            ) from error
        raise
