"""Rewrite the root of RMSNorm so that ONNX Runtime recognizes the norm when a session opens.

    Mul(x, Reciprocal(Sqrt(m)))    ->    Mul(x, Div(1, Sqrt(m)))

Its optimizer makes one op (SimplifiedLayerNormalization) of the second, which torchscript writes,
and leaves the first, which torch's dynamo exporter writes, as seven.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.op_domains import is_onnx_op
from fptq_onnx.passes._contract import PassResult, rewrite_each
from fptq_onnx.passes._edit import constant_initializer, put_in_place

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_MEAN_OF_SQUARES = ("Sqrt", "Add", "ReduceMean")


def reciprocal_to_div(model: ir.Model) -> PassResult:
    """Rewrite in place; what is no such norm is left alone without a word.

    Args:
        model: its main graph is looked at.
    """
    graph = model.graph
    return rewrite_each(graph, lambda node: _divide(graph, node))


def _divide(graph: ir.Graph, node: ir.Node) -> bool:
    root = node.inputs[0] if is_onnx_op(node, "Reciprocal") else None
    if root is None or root.dtype not in _TYPES or not _is_root_of_mean(root):
        return False
    assert root.dtype is not None
    name = f"reciprocal_to_div/one_{root.dtype.name.lower()}"
    one = constant_initializer(graph, name, np.array(1, root.dtype.numpy()))
    put_in_place(graph, node, [ir.node("Div", [one, root], name=node.name)])
    return True


def _is_root_of_mean(value: ir.Value | None) -> bool:
    for op_type in _MEAN_OF_SQUARES:
        node = value.producer() if value is not None else None
        if node is None or not is_onnx_op(node, op_type):
            return False
        makers = [read for read in node.inputs if read is not None and read.producer() is not None]
        value = _computed(makers)
    return True


def _computed(values: list[ir.Value]) -> ir.Value | None:
    """The one that no Constant node makes."""
    found = [v for v in values if (made := v.producer()) is not None and made.op_type != "Constant"]
    return found[0] if len(found) == 1 else None
