"""What a value is computed from: which linears come last before it, and which come before a linear.

A product with constant weights that is no linear (weight_products.py) counts as one does here.
Searches run backwards over values, not over sizes (Shape), and read what subgraphs take from
outside of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.linears.weight_products import WeightProducts
from fptq_onnx.graph.node_reads import node_reads
from fptq_onnx.graph.shapes.symbolic_shapes import known_sizes

SHAPE_ONLY = ("Shape", "Size")
PICKERS = ("TopK", "ArgMax", "ArgMin", "Hardmax")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Sources:
    """Backward searches in one graph.

    Args:
        linears: at least one, all of the same graph.
    """

    def __init__(self, linears: Sequence[Linear]) -> None:
        self.graph: ir.Graph = linears[0].nodes[0].graph  # type: ignore[assignment]
        self.by_product = {id(linear.nodes[0]): linear for linear in linears}
        self.products = WeightProducts(self.graph, self.by_product)
        self._made = {id(node.outputs[0]): linear for linear in linears for node in linear.nodes}
        self._position = {id(node): index for index, node in enumerate(self.graph)}
        self._before: dict[str, set[int]] = {}
        self._constant: dict[int, bool] = {}
        self._sizes = known_sizes(self.graph)

    def rank(self, value: ir.Value) -> int | None:
        """The rank, where it is known."""
        shape = self._sizes.shape(value)
        return None if shape is None else len(shape)

    def last_size(self, value: ir.Value) -> int | None:
        """The size of the last axis, where it is a known number."""
        shape = self._sizes.shape(value)
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value is known before the model runs."""
        if id(value) not in self._constant:
            self._constant[id(value)] = constant_of(value) is not None
        return self._constant[id(value)]

    def another_linear(self, value: ir.Value, linear: Linear, *, convolutions: bool = True) -> bool:
        """Whether a value holds what a linear makes that is neither `linear` nor before it.

        What another linear only picked (TopK, ArgMax) does not count.

        Args:
            value: any.
            linear: of the same graph.
            convolutions: count what a convolution makes.
        """
        for source in self._last(value):
            if isinstance(source, Linear):
                if source.name != linear.name and not self.comes_before(source, linear):
                    return True
            elif isinstance(source, ir.Node):
                if not convolutions and self.products.is_convolution(source):
                    continue
                if not any(id(made) in self._all_before(linear) for made in source.outputs):
                    return True
        return False

    def last_linears(self, value: ir.Value) -> set[int]:
        """Ids of the nodes of the linears that come last before a value."""
        return {
            id(source.nodes[0] if isinstance(source, Linear) else source)
            for source in self._last(value)
            if not isinstance(source, ir.Value)
        }

    def linears_before(self, value: ir.Value) -> list[Linear] | None:
        """The linears that come last before a value; None where anything else is in it as well."""
        sources = list(self._last(value, through_picks=True))
        linears = [source for source in sources if isinstance(source, Linear)]
        return linears if len(linears) == len(sources) else None

    def latest_first(self, linears: Sequence[Linear]) -> list[Linear]:
        """The linears in the order of the graph, from its end."""
        return sorted(linears, key=lambda one: -self._position[id(one.nodes[0])])

    def is_of(self, value: ir.Value, linear: Linear) -> bool:
        """Whether nothing but a linear's output, constants and sizes are in a value."""
        return all(
            isinstance(source, Linear) and source.name == linear.name
            for source in self._last(value, through_picks=True)
        )

    def is_state(self, value: ir.Value, linear: Linear) -> bool:
        """Whether a value is a state given to the model: three axes or more, not the linear's."""
        sources = list(self._last(value))
        if not sources or not all(isinstance(source, ir.Value) for source in sources):
            return False
        given = [source for source in sources if isinstance(source, ir.Value)]
        before = self._all_before(linear)
        return all(
            source.dtype in _FLOATS
            and source.shape is not None
            and len(source.shape) >= 3
            and id(source) not in before
            for source in given
        )

    def comes_before(self, first: Linear, then: Linear) -> bool:
        """Whether `then` is computed from what `first` makes."""
        at, end = self._position[id(first.nodes[0])], self._position[id(then.nodes[0])]
        return at < end and id(first.nodes[0].outputs[0]) in self._all_before(then)

    def _all_before(self, linear: Linear) -> set[int]:
        """Ids of all values that a linear's input is computed from."""
        if linear.name not in self._before:
            seen, pending = {id(linear.x)}, [linear.x]
            while pending:
                node = pending.pop().producer()
                if node is None or node.op_type in SHAPE_ONLY:
                    continue
                for read in node_reads(node):
                    if id(read) not in seen:
                        seen.add(id(read))
                        pending.append(read)
            self._before[linear.name] = seen
        return self._before[linear.name]

    def _last(
        self, value: ir.Value, *, through_picks: bool = False
    ) -> Iterator[Linear | ir.Node | ir.Value]:
        """The linears, other products with weights, and inputs that come last before a value."""
        seen, pending = {id(value)}, [value]
        while pending:
            current = pending.pop()
            linear = self._made.get(id(current))
            if linear is not None:
                yield linear
                continue
            node = current.producer()
            if node is None:
                if current.is_graph_input():
                    yield current
                continue
            if node in self.products:
                yield node
                continue
            if node.op_type in SHAPE_ONLY or (node.op_type in PICKERS and not through_picks):
                continue
            for read in node_reads(node):
                if id(read) not in seen:
                    seen.add(id(read))
                    pending.append(read)
