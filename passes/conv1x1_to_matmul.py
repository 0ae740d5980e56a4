"""Make a linear of a convolution over tokens that sees one token at a time.

    Conv(x [B, K, S], W [N, K, 1], b)   ->   Transpose, MatMul(x, W [K, N]), Add(b), Transpose

torch writes it so for Conv1d with a kernel of 1, of which whole encoders are made (SqueezeBERT).
Transposes that undo those of the model are not written, so norms before it are met directly.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.linears.weights_in_other_ops import convolution_obstacle
from fptq_onnx.graph.op_domains import is_onnx_op
from fptq_onnx.graph.walk_back import input_of
from fptq_onnx.passes._contract import PassResult, rewrite_each
from fptq_onnx.passes._edit import put_in_place, remade, remove_unused

_SWAP = [0, 2, 1]


def conv1x1_to_matmul(model: ir.Model) -> PassResult:
    """Rewrite in place those that are the same as a linear.

    Args:
        model: its main graph is looked at. What else is a convolution is named by find_linears.
    """
    graph = model.graph
    return rewrite_each(graph, lambda node: _open(graph, node))


def _open(graph: ir.Graph, node: ir.Node) -> bool:
    if not is_onnx_op(node, "Conv"):
        return False
    weight, x = constant_of(input_of(node, 1)), node.inputs[0]
    if weight is None or x is None or convolution_obstacle(node) != "":
        return False
    n, k = weight.shape[:2]
    name = node.outputs[0].name or ""  # no two values share one
    nodes: list[ir.Node] = []
    rows = _swapped_from(x)
    if rows is None:
        nodes.append(_swap(x, f"{name}/rows"))
        rows = nodes[-1].outputs[0]
    w = remade(graph, node, weight, lambda array: array.reshape(n, k).T, (k, n))
    nodes.append(ir.node("MatMul", [rows, w], name=node.name))
    bias = input_of(node, 2)
    if bias is not None:
        nodes[-1].outputs[0].name = f"{name}/product"
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{name}/bias"))
    product = nodes[-1].outputs[0]
    product.name = f"{name}/linear"
    nodes.append(_swap(product, ""))
    nodes[-1].name = f"{name}/back"
    put_in_place(graph, node, nodes)
    _undo(graph, nodes[-1], product)
    remove_unused(graph, x)
    return True


def _swap(value: ir.Value, name: str) -> ir.Node:
    node = ir.node("Transpose", [value], {"perm": _SWAP}, name=name)
    node.outputs[0].name = name or None
    return node


def _is_swap(node: ir.Node | None) -> bool:
    perm = node.attributes.get("perm") if node is not None else None
    return is_onnx_op(node, "Transpose") and perm is not None and list(perm.as_ints()) == _SWAP


def _swapped_from(value: ir.Value) -> ir.Value | None:
    """What a Transpose of the model makes a value from, if it only swaps the last two axes."""
    node = value.producer()
    return node.inputs[0] if node is not None and _is_swap(node) else None


def _undo(graph: ir.Graph, back: ir.Node, product: ir.Value) -> None:
    """Let what swaps the axes again read the product itself."""
    for use in tuple(back.outputs[0].uses()):
        again = use.node
        if again.graph is graph and _is_swap(again) and not again.outputs[0].is_graph_output():
            again.outputs[0].replace_all_uses_with(product)
            graph.remove(again, safe=True)
    remove_unused(graph, back.outputs[0])
