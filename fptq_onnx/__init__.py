"""W4A8 quantization of exported ONNX language models, and the library that runs them."""

from typing import TYPE_CHECKING, Any

from fptq_onnx.errors import FptqError

if TYPE_CHECKING:
    from fptq_onnx.calibration.stats import ActivationStats
    from fptq_onnx.config import Config
    from fptq_onnx.pipeline import Conversion, convert
    from fptq_onnx.plan import Plan
    from fptq_onnx.runtime import library_path, register
    from fptq_onnx.samples import Samples

__version__ = "0.1.0"

__all__ = [
    "ActivationStats",
    "Config",
    "Conversion",
    "FptqError",
    "Plan",
    "Samples",
    "__version__",
    "convert",
    "library_path",
    "register",
]

_HOMES = {
    "ActivationStats": "fptq_onnx.calibration.stats",
    "Config": "fptq_onnx.config",
    "Conversion": "fptq_onnx.pipeline",
    "Plan": "fptq_onnx.plan",
    "Samples": "fptq_onnx.samples",
    "convert": "fptq_onnx.pipeline",
    "library_path": "fptq_onnx.runtime",
    "register": "fptq_onnx.runtime",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    A server that only registers the library should not pay for the converter.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'fptq_onnx' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
