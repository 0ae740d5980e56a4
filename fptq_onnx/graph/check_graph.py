"""What is wrong with the structure of a graph: a cheap check for the time between two passes.

Every value that is read, and every output, is made earlier: it is an input, an initializer or of a
node before, in the graph or in one around it. A name stands for one value. Every domain is
imported.
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

    kind: 'missing' (nothing makes a value), 'order' (of nodes; ONNX Runtime does not need it),
        'name', or 'domain' and which.
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
    """What a node may read: values of its graph so far, and of the graphs around it."""

    def __init__(self) -> None:
        self.graphs: list[ir.Graph | ir.Function] = []
        self.values: set[ir.Value] = set()
        self.names: dict[str, ir.Value] = {}  # what a name stands for here

    def problems(self, graph: ir.Graph | ir.Function) -> Iterator[GraphProblem]:
        """Of one graph and what is inside it; what it made is forgotten afterwards."""
        around, self.names, own = self.names, dict(self.names), set[ir.Value]()
        self.graphs.append(graph)
        initializers = graph.initializers if isinstance(graph, ir.Graph) else {}
        for name, value in initializers.items():
            if value.name != name:
                text = f"the initializer {name!r} calls itself {value.name!r}"
                yield GraphProblem("name", text)
        yield from self._add((*graph.inputs, *initializers.values()), own)
        for node in graph:
            for read in node.inputs:
                if read is not None:
                    yield from self._unread(f"{_text(node)} reads {read.name!r}", read)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    yield from self.problems(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for inner in attribute.as_graphs():
                        yield from self.problems(inner)
            yield from self._add(node.outputs, own)
        for value in graph.outputs:
            yield from self._unread(f"{value.name!r} is an output", value)
        self.graphs.pop()
        self.values -= own
        self.names = around

    def _add(self, values: Iterable[ir.Value], own: set[ir.Value]) -> Iterator[GraphProblem]:
        for value in values:
            if value in own:  # an initializer may be an input as well
                continue
            self.values.add(value)
            own.add(value)
            if not value.name:  # an output that is left out
                continue
            if self.names.get(value.name) in own:
                yield GraphProblem("name", f"two values have the name {value.name!r}")
            self.names[value.name] = value  # an inner graph may use a name again

    def _unread(self, text: str, value: ir.Value) -> Iterator[GraphProblem]:
        """Why a value cannot be read here; nothing where it can."""
        maker = value.producer()
        if value in self.values:
            if self.names.get(value.name or "") is not value:
                yield GraphProblem("name", f"{text}, but the name stands for another value there")
        elif maker is None:
            why = "is no input and no initializer of its graph"
            yield GraphProblem("missing", f"{text}, which {why}")
        elif maker.graph in self.graphs:
            yield GraphProblem("order", f"{text}, which {_text(maker)} makes only later")
        else:
            why = "is in no graph" if maker.graph is None else "is inside another graph"
            yield GraphProblem("missing", f"{text}, which {_text(maker)} makes, and that {why}")


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
