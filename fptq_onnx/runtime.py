"""The native library: where it is, and how a session gets it."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fptq_onnx.errors import FptqError

if TYPE_CHECKING:
    import onnxruntime as ort

LIBRARY_NAME = "libfptq_ort_ops.so"
LIBRARY_VARIABLE = "FPTQ_ONNX_LIBRARY"


def library_path() -> Path:
    """The custom-op library, for any program that runs converted models.

    FPTQ_ONNX_LIBRARY names another one.

    Raises:
        FptqError: it is not there.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise FptqError(f"{LIBRARY_VARIABLE} names {named}, which is not a file")
        return Path(named)
    path = importlib.resources.files("fptq_onnx").joinpath("lib", LIBRARY_NAME)
    if not path.is_file():
        raise FptqError(
            f"the native library {LIBRARY_NAME} is not installed: install fptq-onnx with pip, or "
            f"set {LIBRARY_VARIABLE} to its path"
        )
    return Path(str(path))


def register(session_options: ort.SessionOptions) -> None:
    """Let sessions made with these options run models converted to the `custom` target.

    Args:
        session_options: changed; give them to onnxruntime.InferenceSession.

    Raises:
        FptqError: the library is missing, or ONNX Runtime cannot load it.
    """
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime raises its own types
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FptqError(f"ONNX Runtime cannot load {path}: {text}") from error
