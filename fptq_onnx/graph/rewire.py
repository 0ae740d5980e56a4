"""Put a new node between a value and its readers."""

from __future__ import annotations

import onnx_ir as ir


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
