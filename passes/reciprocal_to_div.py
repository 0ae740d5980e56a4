"""Rewrite the root of RMSNorm so that ONNX Runtime recognizes the norm when a session opens.

    Mul(x, Reciprocal(Sqrt(m)))    ->    Mul(x, Div(1, Sqrt(m)))

Its optimizer makes one op (SimplifiedLayerNormalization) of the second, which torchscript writes,
and leaves the first, which torch's dynamo exporter writes, as seven.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.walk_back import domain_of
from fptq_onnx.passes._edit import constant_initializer

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_MEAN_OF_SQUARES = ("Sqrt", "Add", "ReduceMean")


def reciprocal_to_div(model: ir.Model) -> tuple[int, tuple[str, ...]]:
    """Rewrite in place.

    Args:
        model: its main graph is looked at.

    Returns:
        How many were rewritten, and no reasons: what is no such norm is left alone.
    """
    graph, done = model.graph, 0
    for node in list(graph):
        root = node.inputs[0] if node.op_type == "Reciprocal" and domain_of(node) == "" else None
        if root is None or not _is_root_of_mean(root) or root.dtype not in _TYPES:
            continue
        assert root.dtype is not None
        name = f"reciprocal_to_div/one_{root.dtype.name.lower()}"
        one = constant_initializer(graph, name, np.array(1, root.dtype.numpy()))
        divide = ir.node("Div", [one, root], name=node.name)
        old, new = node.outputs[0], divide.outputs[0]
        new.shape, new.type = old.shape, old.type
        divide.metadata_props.update(node.metadata_props)
        graph.insert_before(node, divide)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
        graph.remove(node, safe=True)
        done += 1
    return done, ()


def _is_root_of_mean(value: ir.Value | None) -> bool:
    for op_type in _MEAN_OF_SQUARES:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type or domain_of(node) != "":
            return False
        makers = [read for read in node.inputs if read is not None and read.producer() is not None]
        value = _computed(makers)
    return True


def _computed(values: list[ir.Value]) -> ir.Value | None:
    """The one that no Constant node makes."""
    found = [v for v in values if (made := v.producer()) is not None and made.op_type != "Constant"]
    return found[0] if len(found) == 1 else None
