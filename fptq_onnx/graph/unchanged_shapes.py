"""Reshapes to the shape that the value has already: nothing happens there.

Falcon reshapes heads to [batch, heads, tokens, size] where they are that. Whether it is so follows
from the sizes of the whole graph, which take time to find: they are looked for when first asked.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.known_sizes import known_sizes
from fptq_onnx.graph.size_table import SizeTable
from fptq_onnx.graph.walk_back import domain_of


class UnchangedShapes:
    """Asked about the nodes of one graph, which must not change meanwhile."""

    def __init__(self) -> None:
        self._known: SizeTable | None = None

    def __call__(self, node: ir.Node) -> bool:
        """Whether the node is a Reshape that changes no size.

        All sizes but one are enough: the number of elements stays, so that the last one does too.
        """
        if node.op_type != "Reshape" or domain_of(node) != "" or node.graph is None:
            return False
        if self._known is None:
            assert isinstance(node.graph, ir.Graph)
            self._known = known_sizes(node.graph)
        before, after = (self._known.shape(v) for v in (node.inputs[0], node.outputs[0]))
        if before is None or after is None or len(before) != len(after):
            return False
        return sum(one != other for one, other in zip(before, after, strict=True)) <= 1
