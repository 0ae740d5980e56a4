"""Clear the rows of attention that attend to nothing after the product, where they are short.

    p = Softmax(s)    MatMul(Where(IsNaN(p), 0, p), v)
    p = Softmax(s)    Where(IsNaN(p[..., :1]), 0, MatMul(p, v))

A row whose scores are all -inf (a padded position) has probabilities that are not numbers; torch's
attention makes them 0, element by element. A softmax gives such a row whole or not at all: it
divides by the sum of the row. So one element tells, and the row of the product, of as many elements
as a head instead of as there are tokens, can be cleared instead. The same for every mask, as
long as v holds finite numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.op_domains import is_onnx_op
from fptq_onnx.graph.rewire import follow_with
from fptq_onnx.graph.shapes.shape_table import SizeTable
from fptq_onnx.graph.shapes.symbolic_shapes import known_sizes
from fptq_onnx.graph.walk_back import input_of
from fptq_onnx.passes._contract import PassResult, Refusal, rewrite_each
from fptq_onnx.passes._edit import constant_initializer, remove_unused


def hoist_nan_guard(model: ir.Model) -> PassResult:
    """Rewrite in place.

    Args:
        model: its main graph is looked at.
    """
    graph, known = model.graph, known_sizes(model.graph)
    return rewrite_each(
        graph,
        lambda node: _hoist(graph, known, node),
        left="empty rows are still looked for element by element",
    )


def _hoist(graph: ir.Graph, known: SizeTable, node: ir.Node) -> bool:
    probabilities = _guarded(node)
    if probabilities is None:
        return False
    product = _only_product(node.outputs[0])
    if not _over_last_axis(known, probabilities):
        raise Refusal("the softmax is not known to be over the last axis")
    if product is None:
        raise Refusal("its probabilities are read by other nodes than one product")
    _rewrite(graph, node, probabilities, product)
    return True


def _guarded(node: ir.Node) -> ir.Value | None:
    """The probabilities p of a Where(IsNaN(p), 0, p)."""
    if not is_onnx_op(node, "Where"):
        return None
    condition, zero, kept = node.inputs
    test = condition.producer() if condition is not None else None
    softmax = kept.producer() if kept is not None else None
    if test is None or test.op_type != "IsNaN" or test.inputs[0] is not kept:
        return None
    constant = constant_of(zero)
    if constant is None or set(constant.shape) - {1} or np.any(constant.load() != 0):
        return None
    return kept if is_onnx_op(softmax, "Softmax") else None


def _over_last_axis(known: SizeTable, probabilities: ir.Value) -> bool:
    softmax = probabilities.producer()
    axis = softmax.attributes.get("axis") if softmax is not None else None
    if axis is None or axis.as_int() == -1:
        return True
    shape = known.shape(probabilities)
    return shape is not None and axis.as_int() == len(shape) - 1


def _only_product(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    ((reader, index),) = [(use.node, use.idx) for use in uses]
    return reader if is_onnx_op(reader, "MatMul") and index == 0 else None


def _rewrite(graph: ir.Graph, node: ir.Node, probabilities: ir.Value, product: ir.Node) -> None:
    zero, old, guarded = input_of(node, 1), product.outputs[0], node.outputs[0]
    bounds = [
        constant_initializer(graph, f"hoist_nan_guard/{name}", np.array([number], np.int64))
        for name, number in (("first", 0), ("second", 1), ("last_axis", -1))
    ]
    first = ir.node("Slice", [probabilities, *bounds], name=f"{node.name}/first")
    first.outputs[0].name = f"{guarded.name}/first"
    first.outputs[0].type = probabilities.type
    empty = ir.node("IsNaN", [first.outputs[0]], name=f"{node.name}/empty")
    empty.outputs[0].name = f"{guarded.name}/empty"
    empty.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    graph.insert_before(product, [first, empty])
    product.replace_input_with(0, probabilities)
    clear = ir.node("Where", [empty.outputs[0], zero, old], name=f"{product.name}/cleared")
    follow_with(graph, old, clear)
    remove_unused(graph, guarded)
