"""W4A8 quantization of exported ONNX language models, and the library that runs them."""

import importlib
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from fptq_onnx.errors import FptqError
from fptq_onnx.version import __version__

if TYPE_CHECKING:
    from fptq_onnx.calibration.samples import Samples
    from fptq_onnx.conversion.pipeline import Conversion, convert
    from fptq_onnx.runtime.native_library import library_path, register
    from fptq_onnx.scheme.activation_stats import ActivationStats
    from fptq_onnx.scheme.config import Config
    from fptq_onnx.scheme.plan import Plan

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
    "ActivationStats": "fptq_onnx.scheme.activation_stats",
    "Config": "fptq_onnx.scheme.config",
    "Conversion": "fptq_onnx.conversion.pipeline",
    "Plan": "fptq_onnx.scheme.plan",
    "Samples": "fptq_onnx.calibration.samples",
    "convert": "fptq_onnx.conversion.pipeline",
    "library_path": "fptq_onnx.runtime.native_library",
    "register": "fptq_onnx.runtime.native_library",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    A server that only registers the library should not pay for the converter.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'fptq_onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


# Modules that people imported before they moved; importable by these names until 0.2.
_MOVED = {
    "fptq_onnx.config": "fptq_onnx.scheme.config",
    "fptq_onnx.pipeline": "fptq_onnx.conversion.pipeline",
    "fptq_onnx.plan": "fptq_onnx.scheme.plan",
    "fptq_onnx.recipes": "fptq_onnx.scheme.recipes",
    "fptq_onnx.samples": "fptq_onnx.calibration.samples",
}


class _MovedModules:
    """Finds a moved module by its old name, for the import system (a meta path finder)."""

    @staticmethod
    def find_spec(
        name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec whose module is the one of the new name; None for all other names."""
        if name not in _MOVED:
            return None
        return importlib.machinery.ModuleSpec(name, cast(Any, _MovedModules))

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module of the new name."""
        return importlib.import_module(_MOVED[spec.name])

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing to do: it ran when it was imported by its new name."""


sys.meta_path.append(_MovedModules)
