"""Put linears that read one activation into one op, which quantizes it once (target custom).

    q = MatMulW4A8(x, Wq)    k = MatMulW4A8(x, Wk)    v = MatMulW4A8(x, Wv)
      ->  q, k, v = MatMulW4A8(x, [Wq Wk Wv])

Every part begins at a panel of its own, so the weights are the parts' one after the other and the
results are the same to the last bit. Where scales are float16 in some parts, they become float32 as
in the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes._edit import lazy_initializer

# The op reads lists of this length at most (native/ops/linear_attributes.cc).
_LONGEST_LIST = 64
Joined = dict[tuple[int, ...], tuple[ir.Value, list[ir.Value | None]]]  # by ids of the parts
LINEARS = "fptq.linears"  # metadata of a node: the names of the linears in it, as JSON


def fuse_shared_inputs(model: ir.Model) -> PassResult:
    """Fuse in place, and count the nodes that now hold several linears.

    Args:
        model: with nodes of emit_custom.
    """
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in model.graph:
        if node.domain == FPTQ_DOMAIN:
            groups.setdefault(_key(node), []).append(node)
    fused = 0
    joined: Joined = {}
    for nodes in _without_others_parts(list(groups.values())):
        for start in range(0, len(nodes), _LONGEST_LIST):
            some = nodes[start : start + _LONGEST_LIST]
            if len(some) > 1:
                _fuse(model.graph, some, joined)
                fused += 1
    return PassResult(fused)


def _without_others_parts(groups: list[list[ir.Node]]) -> list[list[ir.Node]]:
    """The groups without nodes whose weight another group has in other company.

    In one op with others a weight would be stored with them, and again elsewhere.
    """
    company: dict[int, set[tuple[int, ...]]] = {}
    for nodes in groups:
        together = tuple(id(node.inputs[1]) for node in nodes)
        for weight in together:
            company.setdefault(weight, set()).add(together)
    return [[node for node in nodes if len(company[id(node.inputs[1])]) == 1] for nodes in groups]


def _key(node: ir.Node) -> tuple[object, ...]:
    """Nodes of one key compute the same thing from the same input, with other weights."""
    attributes = tuple(
        (name, attribute.value)
        for name, attribute in sorted(node.attributes.items())
        if name != "N"
    )
    return (id(node.inputs[0]), node.op_type, attributes, _constant(node, 3) is None)


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    """A constant input; None where it is absent or empty."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None or value.const_value.size == 0:
        return None
    return value.const_value


def _fuse(graph: ir.Graph, nodes: list[ir.Node], joined: Joined) -> None:
    first = nodes[0]
    columns = [n for node in nodes for n in node.attributes["N"].as_ints()]
    inputs = [first.inputs[0], *(_joined(graph, nodes, index, joined) for index in (1, 2))]
    biases = [_constant(node, 4) for node in nodes]
    if _constant(first, 3) is not None:
        inputs.append(_joined(graph, nodes, 3, joined))
    elif any(bias is not None for bias in biases):
        inputs.append(_absent(graph, nodes))
    if any(bias is not None for bias in biases):
        inputs.append(_joined_bias(graph, nodes, columns))
    attributes = {name: attribute for name, attribute in first.attributes.items() if name != "N"}
    attributes["N"] = ir.AttrInt64s("N", columns)
    node = ir.Node(
        FPTQ_DOMAIN,
        first.op_type,
        inputs,
        list(attributes.values()),
        num_outputs=len(nodes),
        name=first.name,
        metadata_props=dict(first.metadata_props),
    )
    node.metadata_props[LINEARS] = json.dumps([part.name for part in nodes])
    graph.insert_before(first, node)
    for new, part in zip(node.outputs, nodes, strict=True):
        old = part.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
    constants = [value for part in nodes for value in part.inputs[1:] if value is not None]
    graph.remove(nodes, safe=True)
    for value in constants:
        if value.name is not None and graph.initializers.get(value.name) is value:
            if not value.uses():
                del graph.initializers[value.name]


def _replace_initializer(
    graph: ir.Graph,
    old: ir.Value,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    make: Callable[[], NDArray[np.generic]],
) -> ir.Value:
    """A lazy initializer under the name of `old`, which gives its name up."""
    assert old.name is not None
    name = old.name
    del graph.initializers[name]
    old.name = f"{name}.part"
    graph.register_initializer(old)  # others may read it; removed with its last reader
    return lazy_initializer(graph, name, dtype, shape, make)


def _joined(graph: ir.Graph, nodes: list[ir.Node], index: int, joined: Joined) -> ir.Value:
    """Input `index` of all nodes, one after the other along the panels; one for equal lists."""
    key = tuple(id(node.inputs[index]) for node in nodes)
    if key not in joined:
        # The parts are kept beside it: an id is only its own while they live.
        joined[key] = _join(graph, nodes, index), [node.inputs[index] for node in nodes]
    return joined[key][0]


def _join(graph: ir.Graph, nodes: list[ir.Node], index: int) -> ir.Value:
    tensors = [tensor for node in nodes if (tensor := _constant(node, index)) is not None]
    types = {tensor.dtype for tensor in tensors}
    dtype = types.pop() if len(types) == 1 else ir.DataType.FLOAT

    def join() -> NDArray[np.generic]:
        return np.concatenate([tensor.numpy().astype(dtype.numpy()) for tensor in tensors])

    old = nodes[0].inputs[index]
    shapes = [tensor.shape.numpy() for tensor in tensors]
    assert old is not None and len(tensors) == len(nodes)
    shape = (sum(panels for panels, *_ in shapes), *shapes[0][1:])
    return _replace_initializer(graph, old, dtype, shape, join)


def _absent(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Value:
    """An empty zero_points, for a bias to follow: one of the nodes has it."""
    for node in nodes:
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            return node.inputs[3]
    raise AssertionError("a node with a bias has something before it")


def _joined_bias(graph: ir.Graph, nodes: list[ir.Node], columns: list[int]) -> ir.Value:
    """The biases one after the other, zeros for a linear that has none."""
    biases = [_constant(node, 4) for node in nodes]

    def join() -> NDArray[np.generic]:
        parts = zip(biases, columns, strict=True)
        return np.concatenate(
            [np.zeros(n, np.float32) if bias is None else bias.numpy() for bias, n in parts]
        )

    old = next(node.inputs[4] for node in nodes if _constant(node, 4) is not None)
    assert old is not None
    return _replace_initializer(graph, old, ir.DataType.FLOAT, (sum(columns),), join)
