"""Tell whether a graph is still as it was when something was found out about it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


class GraphState:
    """What a model's graph holds at a moment; two are equal where nothing was changed between.

    Nodes with their names, operators, attributes, inputs and outputs; the model's inputs, outputs
    and initializers with their tensors; names, types and shapes of values. Tensors count as the
    objects that they are: nothing here reads a weight, and a pass that changes one puts another
    object in its place.
    """

    def __init__(self, model: ir.Model) -> None:
        """Take down the state.

        Args:
            model: its subgraphs are part of it.
        """
        # Held, so that no new object can have the identity of one that is gone.
        self._held: list[object] = []
        self._parts: list[object] = []
        for graph in model.graphs():
            self._values(graph.inputs)
            self._values(graph.outputs)
            for value in graph.initializers.values():
                self._values((value,))
                self._objects((value.const_value,))
            for node in graph:
                self._parts += (node.name, node.op_type, node.domain)
                self._objects((node, *node.attributes.values()))
                self._values(node.inputs)
                self._values(node.outputs)

    def _objects(self, objects: tuple[object, ...]) -> None:
        self._held += objects
        self._parts.append(tuple(map(id, objects)))

    def _values(self, values: Iterable[ir.Value | None]) -> None:
        listed = tuple(values)
        self._objects(listed)
        for value in listed:
            if value is not None:
                shape = None if value.shape is None else tuple(value.shape)
                self._parts += (value.name, value.dtype, shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraphState) and self._parts == other._parts

    __hash__ = None  # type: ignore[assignment]  # as comparing needs the whole
