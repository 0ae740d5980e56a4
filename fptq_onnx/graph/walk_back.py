"""Walk from a value back to what it is made of, one expected node at a time."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.linears.linears import FLOAT_TYPES
from fptq_onnx.graph.op_domains import domain_of

READS_SHAPE_ONLY = ("Shape", "Size")


class WalkBack:
    """Where a walk is, and what it has passed.

    value: where it is.
    """

    def __init__(
        self, value: ir.Value, also: Callable[[ir.Node], bool] = lambda node: False
    ) -> None:
        """Begin at a value.

        Args:
            value: where to begin.
            also: whether a node gives its first input as it is, and is passed over like a cast.
        """
        self.value = value
        self._also = also
        self._passed: list[tuple[ir.Value, ir.Node]] = []
        self._skip_casts()

    def take(self, op_type: str, index: int = 0, domain: str = "") -> ir.Node | None:
        """Step over the node that makes the value, if it is of this type: to its input `index`.

        Returns:
            The node; None where there is none, and nothing moved.
        """
        node = self.value.producer()
        if node is None or node.op_type != op_type or domain_of(node) != domain:
            return None
        source = input_of(node, index)
        if source is None:
            return None
        self._passed.append((source, node))
        self.value = source
        self._skip_casts()
        return node

    def leads_only_here(
        self,
        harmless: Callable[[ir.Node, ir.Node], bool],
        cache: ir.Value | None = None,
    ) -> bool:
        """Whether everything passed feeds nothing but the way the walk came.

        Args:
            harmless: given a node on the way and another reader of what it reads, whether that one
                takes other parts of it.
            cache: a value that may be an output of the model too.
        """
        for value, node in self._passed:
            if value.is_graph_output() and value is not cache:
                return False
            for use in value.uses():
                if use.node is node or use.node.op_type in READS_SHAPE_ONLY:
                    continue
                if not harmless(node, use.node):
                    return False
        return True

    def _skip_casts(self) -> None:
        node = self.value.producer()
        while node is not None and (_keeps_values(node) or self._also(node)):
            if node.inputs[0] is None:
                return
            self._passed.append((node.inputs[0], node))
            self.value = node.inputs[0]
            node = self.value.producer()


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input; None where it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.name == "" else value


def int_of(node: ir.Node, attribute: str) -> int | None:
    """An integer attribute; None where it is not given."""
    found = node.attributes.get(attribute)
    return None if found is None else found.as_int()


def dimension(shape: ir.Value | None, axis: int) -> int | None:
    """One entry of a shape that is constant there: of a constant, or of a Concat of pieces."""
    known = scalar_ints(shape)
    if known is not None:
        return known[axis] if -len(known) <= axis < len(known) else None
    node = None if shape is None else shape.producer()
    if node is None or node.op_type != "Concat":
        return None
    # Exporters join pieces of one dimension each: counted so, from either end.
    pieces = list(node.inputs)
    if not -len(pieces) <= axis < len(pieces):
        return None
    skipped = pieces[axis + 1 :] if -1 > axis else pieces[:axis] if axis >= 0 else []
    for piece in skipped:
        known = scalar_ints(piece)
        if known is not None and len(known) != 1:
            return None
    picked = scalar_ints(pieces[axis])
    return picked[0] if picked is not None and len(picked) == 1 else None


def _keeps_values(node: ir.Node) -> bool:
    if domain_of(node) != "":
        return False
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() in FLOAT_TYPES
    return node.op_type in ("Identity", "Dropout") and len(node.outputs) == 1
