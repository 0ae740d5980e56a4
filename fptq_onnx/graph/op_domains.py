"""The domains of the ops that graphs are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # what asks for a name alone does not load onnx_ir
    import onnx_ir as ir

FPTQ_DOMAIN: Final = "fptq"  # ours: the ops of the custom-op library
MSFT_DOMAIN: Final = "com.microsoft"  # ONNX Runtime's own
# ONNX's own ops; the domain has two names, and domain_of() gives the first.
ONNX_DOMAIN: Final = ""
_ALSO_ONNX: Final = "ai.onnx"


def one_name(domain: str) -> str:
    """A domain under its one name: '' (ONNX_DOMAIN) for 'ai.onnx'."""
    return ONNX_DOMAIN if domain == _ALSO_ONNX else domain


def domain_of(node: ir.Node) -> str:
    """The domain of a node's op, '' (ONNX_DOMAIN) for ONNX's own under either name."""
    return one_name(node.domain)


def is_onnx_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these ops of ONNX; of None, False."""
    return node is not None and node.op_type in op_types and domain_of(node) == ONNX_DOMAIN


def onnx_opset(model: ir.Model) -> int:
    """The version of ONNX's ops that a model imports; 0 where it imports none."""
    imports = model.opset_imports
    return imports.get(ONNX_DOMAIN, imports.get(_ALSO_ONNX, 0))
