"""Compute the logits of the last position only, and all that leads to nothing else.

    logits = head(norm(r + mlp(x)))    ->    logits = head(norm(r' + mlp(x'))), r' = r[:, -1:], ...

Generation looks at one row of logits in each call. The head is the largest matrix of a model, and a
prompt has hundreds of rows; in the last layer, all after the attention serves those rows alone as
well. So the cut is made as early as it can be: nodes that treat each position by itself, and whose
outputs go nowhere but to the logits, get the last position only.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.op_domains import FPTQ_DOMAIN, MSFT_DOMAIN, ONNX_DOMAIN, domain_of, is_onnx_op
from fptq_onnx.passes._contract import PassResult

# Ops that treat every [..., channels] row by itself. Elementwise ones broadcast constants.
_ELEMENTWISE = {
    "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Silu", "Softplus", "Sqrt",
    "Sub", "Swish", "Tanh",
}  # fmt: skip
_LAST_AXIS_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_ROWWISE = {
    ONNX_DOMAIN: {*_ELEMENTWISE, *_LAST_AXIS_NORMS},
    MSFT_DOMAIN: {
        "BiasGelu", "FastGelu", "Gelu", "MatMulNBits", "QuickGelu",
        "SimplifiedLayerNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    },
    FPTQ_DOMAIN: {"MatMulW4A8", "MatMulW8A8"},
}  # fmt: skip


def keep_last_logits(model: ir.Model, logits: str) -> PassResult:
    """Change the graph in place; the logits become [batch, 1, vocabulary].

    Args:
        model: a decoder; shapes of its values as far as they are known are relied on.
        logits: name of the output.

    Returns:
        How many nodes compute the last position only, as `changed`; 0 where the graph was left as
        it is, because nothing says that its rows are [batch, sequence, channels].
    """
    graph = model.graph
    output = next((value for value in graph.outputs if value.name == logits), None)
    if output is None or _rank(output) != 3:
        return PassResult()
    inside: dict[ir.Node, None] = {}
    for node in reversed(list(graph)):
        if _rowwise(node) and _leads_nowhere_else(node, output, inside) and _inputs_have_rows(node):
            inside[node] = None
    entering = {
        value: None
        for node in inside
        for value in node.inputs
        if value is not None and not _constant(value) and value.producer() not in inside
    }
    if not inside:
        return PassResult()
    last = ir.Value(
        name="keep_last_logits/last",
        const_value=ir.tensor(np.array([-1], np.int64), name="keep_last_logits/last"),
    )
    graph.initializers.add(last)
    for number, value in enumerate(entering):
        _cut(graph, value, last, inside, number)
    for node in inside:
        for made in node.outputs:
            _shorten(made)
    return PassResult(len(inside))


def _cut(
    graph: ir.Graph, value: ir.Value, last: ir.Value, inside: dict[ir.Node, None], number: int
) -> None:
    gather = ir.node("Gather", [value, last], {"axis": 1}, name=f"keep_last_logits/{number}")
    (cut,) = gather.outputs
    cut.name, cut.type, cut.shape = f"keep_last_logits/{number}/output", value.type, value.shape
    _shorten(cut)
    for node, index in list(value.uses()):
        if node in inside:
            node.replace_input_with(index, cut)
    producer = value.producer()
    if producer is None:  # a graph input
        graph.insert_before(graph[0], gather)
    else:
        graph.insert_after(producer, gather)


def _rowwise(node: ir.Node) -> bool:
    if is_onnx_op(node, "MatMul"):
        weight = node.inputs[1]
        return weight is not None and _constant(weight) and _constant_rank(weight) == 2
    if node.op_type not in _ROWWISE.get(domain_of(node), ()):
        return False
    if node.op_type in _LAST_AXIS_NORMS:
        return node.attributes.get_int("axis", -1) in (-1, 2)
    # A constant of rank 3 could differ from position to position: a table of positions, a mask.
    return all(
        value is None or not _constant(value) or node.op_type not in _ELEMENTWISE or _flat(value)
        for value in node.inputs
    )


def _inputs_have_rows(node: ir.Node) -> bool:
    """Whether what a node with rows as its output computes them from is rows as well.

    Many exporters leave shapes out. Then an input has the rank of the output where the op lets no
    other input decide it.
    """
    moving = [value for value in node.inputs if value is not None and not _constant(value)]
    if not moving:
        return False  # a weight's own Cast
    if all(_rank(value) == 3 for value in moving):
        return True
    fixed = [value for value in node.inputs if value is not None and _constant(value)]
    alone = len(moving) == 1 and moving[0] is node.inputs[0] and _rank(moving[0]) is None
    if node.op_type in _ELEMENTWISE:
        return alone and all((_constant_rank(value) or 0) < 3 for value in fixed)
    return alone


def _constant_rank(value: ir.Value) -> int | None:
    return len(value.const_value.shape) if value.const_value is not None else _rank(value)


def _flat(value: ir.Value) -> bool:
    """Whether a constant is the same for all positions."""
    if value.shape is None:
        tensor = value.const_value
        return tensor is not None and len(tensor.shape) < 2
    dims = list(value.shape)
    return len(dims) < 2 or dims[-2] == 1


def _leads_nowhere_else(node: ir.Node, output: ir.Value, inside: dict[ir.Node, None]) -> bool:
    used = False
    for made in node.outputs:
        if made.is_graph_output() and made is not output:
            return False
        if any(consumer not in inside for consumer in made.consumers()):
            return False
        used = used or made is output or bool(tuple(made.consumers()))
    return used


def _constant(value: ir.Value) -> bool:
    """Whether a value is a weight, or made of weights alone: cast, transposed, dequantized."""
    producer = value.producer()
    if producer is None:
        return value.is_initializer() and not value.is_graph_input()
    return all(source is None or _constant(source) for source in producer.inputs) and (
        producer.op_type == "Constant" or bool(producer.inputs)
    )


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _shorten(value: ir.Value) -> None:
    """One position where there were all of them."""
    if value.shape is not None and len(value.shape) == 3:
        value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
