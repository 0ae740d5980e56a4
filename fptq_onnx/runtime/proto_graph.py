"""A graph as protobuf, looked at by the names of its values: who makes, reads and gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from fptq_onnx.model_io.tensor_spec import Shape, specs_of_protos


class ProtoGraph:
    """A view of a graph as it is when this is made.

    Attributes:
        proto: the graph.
        producers: the number of the node that makes a value.
        consumers: (number of the node, place among its inputs) of each use of a value.
        inner: the values that subgraphs read; they may be of the graph.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
        initializers: names of the graph's initializers.
        shapes: of the values that the graph says the shape of.
    """

    def __init__(self, proto: onnx.GraphProto) -> None:
        """Look through the graph once.

        Args:
            proto: not changed.
        """
        self.proto = proto
        self.producers: dict[str, int] = {}
        self.consumers: dict[str, list[tuple[int, int]]] = {}
        self.inner: set[str] = set()
        for number, node in enumerate(proto.node):
            self.producers.update((name, number) for name in node.output if name)
            for place, name in enumerate(node.input):
                if name:
                    self.consumers.setdefault(name, []).append((number, place))
            for graph in _subgraphs(node):
                self._note_inner(graph)
        self.inputs = {value.name for value in proto.input}
        self.outputs = {value.name for value in proto.output}
        self.initializers = {tensor.name for tensor in proto.initializer}
        self.shapes: dict[str, Shape] = {
            tensor.name: tuple(tensor.dims) for tensor in proto.initializer
        }
        for values in (proto.value_info, proto.input, proto.output):
            for spec in specs_of_protos(values):
                if spec.shape is not None:
                    self.shapes[spec.name] = spec.shape

    def _note_inner(self, graph: onnx.GraphProto) -> None:
        self.inner.update(value.name for value in graph.output)
        for node in graph.node:
            self.inner.update(node.input)
            for below in _subgraphs(node):
                self._note_inner(below)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value, None for inputs and initializers."""
        number = self.producers.get(name)
        return None if number is None else self.proto.node[number]

    def rank(self, name: str) -> int | None:
        """Number of axes, None where unknown."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def sources(self, names: Iterable[str]) -> set[str]:
        """The graph inputs that values are computed from."""
        found: set[str] = set()
        waiting = [name for name in names if name]
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            producer = self.producer(name)
            if producer is None:
                if name in self.inputs:
                    found.add(name)
                continue
            for source in producer.input:
                if source and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return found


def integers_of(node: onnx.NodeProto) -> Mapping[str, int]:
    """The integer attributes of a node, by name."""
    return {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}


def input_of(node: onnx.NodeProto, place: int) -> str:
    """The name of an input, "" where the node has none at this place."""
    return str(node.input[place]) if place < len(node.input) else ""


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs
