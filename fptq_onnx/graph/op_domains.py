"""The domains of the ops that graphs are made of."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

# ONNX's own ops. The default domain has two names; models are loaded with the first of them
# (model_io/load.py), a node's own may still be the second.
ONNX_DOMAIN: Final = ""
ONNX_DOMAINS: Final = ("", "ai.onnx")
# ONNX Runtime's own ops, and ours, which the custom-op library has.
MSFT_DOMAIN: Final = "com.microsoft"
FPTQ_DOMAIN: Final = "fptq"


def domain_of(node: ir.Node) -> str:
    """The domain of a node, '' for ONNX's own ops whichever name it has."""
    return ONNX_DOMAIN if node.domain in ONNX_DOMAINS else node.domain
