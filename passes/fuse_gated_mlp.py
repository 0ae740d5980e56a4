"""Multiply gate and up inside the op that computes both (target custom).

    g, u = MatMulW4A8(x, [Wg Wu])    y = Mul(f(g), u)    ->    y = MatMulW4A8(x, [Wg Wu], gate=f)

f is SiLU or tanh-GELU, however the graph spells it. The op computes it in float32 to the last bits
(docs/numerics.md), which is all that changes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.graph.elementwise import (
    Array,
    NotElementwise,
    Piece,
    function_of,
    gelu_erf,
    gelu_tanh,
    silu,
)
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN, is_onnx_op
from fptq_onnx.numerics.swiglu import GELU_TANH, SILU
from fptq_onnx.passes._contract import PassResult, Refusal, rewrite_each
from fptq_onnx.passes._edit import weight_initializer

_POINTS: Array = np.linspace(-12, 12, 961)
# The constants of a graph are rounded to its type. GELU by erf differs from GELU by tanh by up to
# 4.7e-4, so float16 constants can still be told apart.
_TOLERANCE = {ir.DataType.FLOAT: 2e-6, ir.DataType.FLOAT16: 2e-4}


def fuse_gated_mlp(model: ir.Model) -> PassResult:
    """Fuse in place.

    Args:
        model: after fuse_shared_inputs.
    """
    graph = model.graph
    result = rewrite_each(
        graph, lambda node: _gate(graph, node), left="gate and up are not multiplied in the op"
    )
    if result.changed:
        common_passes.RemoveUnusedNodesPass()(model)
    return result


def _gate(graph: ir.Graph, node: ir.Node) -> bool:
    if node.domain != FPTQ_DOMAIN or len(node.outputs) != 2 or "gate" in node.attributes:
        return False
    columns = node.attributes["N"].as_ints()
    product = _product(node)
    if columns[0] != columns[1] or product is None:
        return False
    multiply, gate = product
    try:
        function, piece = _recognize(node, multiply, gate)
    except NotElementwise as error:
        raise Refusal(str(error)) from error
    _fuse(graph, node, multiply, piece, gate, function)
    return True


def _product(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Mul that one output goes to alone, and the index of the other, the gate."""
    for gate in (0, 1):
        up = node.outputs[1 - gate]
        consumers = tuple(up.consumers())
        if len(consumers) == 1 and not up.is_graph_output():
            (multiply,) = consumers
            if is_onnx_op(multiply, "Mul"):
                others = [value for value in multiply.inputs if value is not up]
                if len(others) == 1 and others[0] is not node.outputs[gate]:
                    return multiply, gate
    return None


def _recognize(node: ir.Node, multiply: ir.Node, gate: int) -> tuple[str, Piece]:
    source, up = node.outputs[gate], node.outputs[1 - gate]
    (activated,) = [value for value in multiply.inputs if value is not up]
    assert activated is not None
    piece = function_of(activated, source, _POINTS)
    inside = {multiply, *piece.nodes}
    for value in (source, *(output for part in piece.nodes for output in part.outputs)):
        if value.is_graph_output() or not inside.issuperset(value.consumers()):
            raise NotElementwise(f"{value.name} is used elsewhere, too")
    dtype = source.dtype or ir.DataType.FLOAT
    tolerance = _TOLERANCE.get(dtype, 0.0)
    for name, function in ((SILU, silu), (GELU_TANH, gelu_tanh)):
        if np.abs(piece.values - function(_POINTS)).max() <= tolerance:
            return name, piece
    if np.abs(piece.values - gelu_erf(_POINTS)).max() <= tolerance:
        raise NotElementwise("its activation is GELU by erf, the op has SiLU and GELU by tanh")
    raise NotElementwise("its activation is neither SiLU nor GELU by tanh")


def _fuse(
    graph: ir.Graph, node: ir.Node, multiply: ir.Node, piece: Piece, gate: int, function: str
) -> None:
    inputs = list(node.inputs)
    if gate == 1:
        for index in range(1, len(inputs)):
            inputs[index] = _swapped(graph, inputs[index])
    attributes = [*node.attributes.values(), ir.AttrString("gate", function)]
    new = ir.Node(
        FPTQ_DOMAIN,
        node.op_type,
        inputs,
        attributes,
        num_outputs=1,
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    old, output = multiply.outputs[0], new.outputs[0]
    output.name, output.shape, output.type = old.name, old.shape, old.type
    graph.insert_before(node, new)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    old.name = None
    graph.remove([multiply, *reversed(piece.nodes), node], safe=True)


def _swapped(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """A constant input with its halves exchanged: the op wants the gate first.

    One for all nodes that read the constant; RemoveUnusedNodes takes the constant away after them.
    """
    if value is None or value.const_value is None or value.const_value.size == 0:
        return value
    tensor = value.const_value
    shape = tensor.shape.numpy()
    half = shape[0] // 2
    return weight_initializer(
        graph,
        f"{value.name}.gate_first",
        tensor.dtype,
        shape,
        lambda: np.roll(tensor.numpy(), half, axis=0),
    )
