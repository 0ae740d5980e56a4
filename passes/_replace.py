"""What passes share: put nodes where a linear or another was, and tensors made when written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.constants import Array, Constant
from fptq_onnx.graph.linears import Linear


def current_input(linear: Linear) -> ir.Value:
    """The activation a linear reads now; `linear.x` may be gone when it was another linear's y."""
    x = linear.nodes[0].inputs[0]
    assert x is not None  # find_linears saw one, and nobody takes inputs away
    return x


def lazy_initializer(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    make: Callable[[], NDArray[np.generic]],
) -> ir.Value:
    """Register an initializer whose array is made each time it is asked for, and not kept."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.const_value = ir.LazyTensor(
        lambda: ir.Tensor(make(), dtype=dtype, shape=ir.Shape(shape), name=name),
        dtype,
        ir.Shape(shape),
        name=name,
    )
    graph.register_initializer(value)
    return value


def weight_initializer(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    make: Callable[[], NDArray[np.generic]],
) -> ir.Value:
    """As lazy_initializer, or the one of that name: linears with one weight read one initializer.

    Raises:
        ValueError: the one of that name has another type or shape.
    """
    known = graph.initializers.get(name)
    if known is None:
        return lazy_initializer(graph, name, dtype, shape, make)
    tensor = known.const_value
    if tensor is None or (tensor.dtype, tuple(tensor.shape.numpy())) != (dtype, tuple(shape)):
        raise ValueError(f"{name} is there already in another form")
    return known


def constant_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a small initializer, or return the one of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def replace_linear(linear: Linear, node: ir.Node, *, keep_bias: bool) -> None:
    """Put `node` (one output) in place of a linear's MatMul or Gemm.

    Args:
        linear: what is replaced.
        node: computes x @ W, and the bias too unless keep_bias.
        keep_bias: the Add after a MatMul stays; only the product is replaced.
    """
    old_nodes = linear.nodes[:1] if keep_bias else linear.nodes
    old = old_nodes[-1].outputs[0]
    graph = old_nodes[-1].graph
    assert isinstance(graph, ir.Graph)  # find_linears looks at the main graph only
    new = node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    node.name = linear.nodes[0].name
    node.metadata_props.update(linear.nodes[0].metadata_props)
    graph.insert_before(old_nodes[-1], node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    graph.remove(list(reversed(old_nodes)), safe=True)


def remove_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove the nodes that make a value nobody reads any more, and what was made for them alone.

    Args:
        graph: the main graph; its inputs, outputs and initializers stay.
        value: where to begin.
    """
    pending = [value]
    while pending:
        current = pending.pop()
        node = current.producer() if current is not None else None
        if node is None or node.graph is not graph:
            continue
        if any(made.uses() or made.is_graph_output() for made in node.outputs):
            continue
        pending += [read for read in node.inputs if read is not None]
        graph.remove(node, safe=True)


def follow_with(graph: ir.Graph | ir.Function, value: ir.Value, node: ir.Node) -> None:
    """Let a node that reads `value` take its place for all other readers, and its name.

    Args:
        graph: what holds the node that makes `value`.
        value: what a node of the graph makes; renamed.
        node: new, with one output of the same type.
    """
    maker, (new,) = value.producer(), node.outputs
    assert maker is not None  # callers replace what nodes make
    name, new.shape, new.type = value.name, value.shape, value.type
    value.replace_all_uses_with(new, replace_graph_outputs=True)
    for index, read in enumerate(node.inputs):
        if read is new:
            node.replace_input_with(index, value)
    value.name, new.name, value.shape = f"{name}/before_{node.op_type}", name, None
    graph.insert_after(maker, node)


def remade(
    graph: ir.Graph,
    node: ir.Node,
    constant: Constant,
    change: Callable[[Array], Array],
    shape: tuple[int, ...],
    index: int = 1,
) -> ir.Value:
    """An initializer made from a constant each time it is read.

    Args:
        graph: the main graph.
        node: what reads the constant; the name is made of its output's.
        constant: where it is made from.
        change: makes an array of the given shape; the constant's dtype comes out.
        shape: of the result.
        index: tells apart several for one node.
    """

    def make() -> Array:
        changed = change(constant.load())
        return np.ascontiguousarray(changed.astype(constant.dtype.numpy(), copy=False))

    name = f"{constant.name}_of_{node.outputs[0].name}_{index}"
    return lazy_initializer(graph, name, constant.dtype, shape, make)


def put_in_place(graph: ir.Graph, old: ir.Node, nodes: list[ir.Node]) -> None:
    """Put nodes in place of one; the last one's first output is the old one's.

    Args:
        graph: the main graph.
        old: removed, with its hints for people given to the first of the new.
        nodes: in the order of evaluation.
    """
    new, result = nodes[-1].outputs[0], old.outputs[0]
    nodes[0].metadata_props.update(old.metadata_props)
    new.name, new.shape, new.type = result.name, result.shape, result.type
    graph.insert_before(old, nodes)
    result.replace_all_uses_with(new, replace_graph_outputs=True)
    result.name = None
    graph.remove(old, safe=True)
