"""What is wrong with the structure of a graph: a cheap check for the time between two passes.

Every input is made earlier: by an input, an initializer or a node before, of the graph or of one
around it. Every name stands for one value. Every output is made. Every domain is imported.
Types, shapes and attributes are not looked at: onnx.checker and ONNX Runtime do that on what is
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.op_domains import domain_of, one_name


@dataclass(frozen=True)
class GraphProblem:
    """One thing that is wrong.

    kind: 'order' (of nodes, or nothing makes a value), 'name', 'output', or 'domain' and which.
    text: a sentence, for people.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        """The sentence."""
        return self.text


def graph_problems(model: ir.Model) -> tuple[GraphProblem, ...]:
    """What is wrong; nothing for a sound graph.

    Args:
        model: not changed; weights are not read. Subgraphs and functions are checked, too.
    """
    found = list(_Scope().problems(model.graph))
    found += _missing_imports(model.graph.all_nodes(), model.opset_imports, "the model")
    for function in model.functions.values():
        found += _Scope().problems(function)
        nodes, imports = function.all_nodes(), function.opset_imports
        found += _missing_imports(nodes, imports, f"the function {function.name}")
    return tuple(dict.fromkeys(found))


class _Scope:
    """The values and names that a node may read: of its graph so far, and of the graphs around."""

    def __init__(self) -> None:
        self.values: set[ir.Value] = set()
        self.names: dict[str, ir.Value] = {}

    def problems(self, graph: ir.Graph | ir.Function) -> Iterator[GraphProblem]:
        """Of one graph and what is inside it; what it made is forgotten afterwards."""
        added: list[ir.Value] = []
        initializers = graph.initializers if isinstance(graph, ir.Graph) else {}
        for name, value in initializers.items():
            if value.name != name:
                text = f"the initializer {name!r} calls itself {value.name!r}"
                yield GraphProblem("name", text)
        yield from self._add((*graph.inputs, *initializers.values()), added)
        for node in graph:
            for read in node.inputs:
                if read is not None and read not in self.values:
                    text = f"{_text(node)} reads {read.name!r}, which {_whose(read)}"
                    yield GraphProblem("order", text)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    yield from self.problems(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for inner in attribute.as_graphs():
                        yield from self.problems(inner)
            yield from self._add(node.outputs, added)
        for value in graph.outputs:
            if value not in self.values:
                yield GraphProblem("output", f"the output {value.name!r} {_whose(value)}")
        for value in added:
            self.values.discard(value)
            self.names.pop(value.name or "", None)

    def _add(self, values: Iterable[ir.Value], added: list[ir.Value]) -> Iterator[GraphProblem]:
        for value in values:
            if value in self.values:  # an initializer may be an input as well
                continue
            self.values.add(value)
            added.append(value)
            if value.name:  # an output that is left out has none
                if self.names.setdefault(value.name, value) is not value:
                    yield GraphProblem("name", f"two values have the name {value.name!r}")


def _whose(value: ir.Value) -> str:
    """Why nobody can read a value here."""
    maker = value.producer()
    if maker is None:
        return "is no input and no initializer of the graph"
    if maker.graph is None:
        return f"is made by {_text(maker)}, which is in no graph"
    return f"is made by {_text(maker)}, which comes later or is inside another graph"


def _text(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def _missing_imports(
    nodes: Iterable[ir.Node], imports: dict[str, int], whose: str
) -> Iterator[GraphProblem]:
    domains = {domain_of(node): node for node in nodes}
    known = set(map(one_name, imports))
    for domain, node in domains.items():
        if domain not in known:
            text = f"{_text(node)} is of the domain {domain!r}, which {whose} does not import"
            yield GraphProblem(f"domain {domain}", text)
