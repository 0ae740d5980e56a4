"""The exporters by name, and the packages each needs; none of them is imported here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from fptq_onnx.errors import FptqError
from fptq_onnx.install_advice import install_advice


@dataclass(frozen=True)
class Exporter:
    """One way to ONNX.

    name: as on the command line.
    package: the distribution that does it.
    modules: what must be installed, as imported.
    """

    name: str
    package: str
    modules: tuple[str, ...]

    def version(self) -> str:
        """`package version`, for people."""
        return f"{self.package} {importlib.metadata.version(self.package)}"


EXPORTERS = {
    exporter.name: exporter
    for exporter in (
        # Fused attention (GroupQueryAttention) and norms: the fastest graphs.
        Exporter("genai", "onnxruntime-genai", ("torch", "transformers", "onnxruntime_genai")),
        Exporter("optimum", "optimum-onnx", ("torch", "transformers", "optimum")),
        Exporter("dynamo", "torch", ("torch", "transformers", "onnxscript")),
    )
}


def find_exporter(name: str) -> Exporter:
    """The exporter of this name, installed.

    Raises:
        FptqError: no such exporter, or a package it needs is missing.
    """
    exporter = EXPORTERS.get(name)
    if exporter is None:
        raise FptqError(f"unknown exporter {name!r}: use one of {', '.join(EXPORTERS)}")
    missing = [module for module in exporter.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise FptqError(
            f"exporting needs {' and '.join(missing)}, not installed here: "
            f"{install_advice('export')}"
        )
    return exporter
