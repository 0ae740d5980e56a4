"""Everything a node reads: its inputs, and what its subgraphs take from outside of them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def node_reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, from inside its subgraphs too."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            inner = {id(v) for n in graph for v in n.outputs} | {id(v) for v in graph.inputs}
            for sub in graph:
                yield from (
                    v for v in node_reads(sub) if id(v) not in inner and not v.is_initializer()
                )
