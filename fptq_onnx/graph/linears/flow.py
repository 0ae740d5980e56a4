"""What lies between linears: where a linear's input comes from, and where its output goes.

Walks follow every edge but those of shapes, and end at linears, at attention and at the model's
inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.attention.attention import READS_SHAPE_ONLY, find_attention
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.op_domains import domain_of

_CUTS = ("Split", "Slice", "Gather")
_ACTIVATIONS = {
    "Sigmoid", "Tanh", "Erf", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Swish", "Silu",
    "HardSwish", "HardSigmoid", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu",
    "Mish", "Softplus", "Softsign",
}  # fmt: skip
_SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


@dataclass(frozen=True)
class Origin:
    """One thing a value is computed from.

    linear: the name of a linear, or ''.
    core: the number of an attention core, or -1. With neither it is an input of the model.
    part: of a linear whose output is split or sliced, which piece; 0 for all of it.
    activated: whether an activation function is on the way.
    """

    linear: str = ""
    core: int = -1
    part: int = 0
    activated: bool = False


class LinearFlow:
    """The ways between linears of one graph.

    Args:
        linears: at least one, all of the same graph.
    """

    def __init__(self, linears: Sequence[Linear]) -> None:
        self.linears = linears
        self.graph: ir.Graph = linears[0].nodes[0].graph  # type: ignore[assignment]
        self.by_output = {id(linear.output): linear for linear in linears}
        self.by_node = {id(linear.nodes[0]): linear for linear in linears}
        self.cores = find_attention(self.graph, self.by_node.keys())

    def origins(self, value: ir.Value) -> frozenset[Origin]:
        """Everything a value is computed from."""
        found: set[Origin] = set()
        start = (value, 0, False)
        seen, pending = {(id(value), 0, False)}, [start]
        while pending:
            current, part, activated = pending.pop()
            node = current.producer()
            if id(current) in self.by_output:
                name = self.by_output[id(current)].name
                found.add(Origin(name, part=part, activated=activated))
            elif id(current) in self.cores.results:
                found.add(Origin(core=self.cores.results[id(current)]))
            elif node is None:
                if current.const_value is None:
                    found.add(Origin())
            elif node.op_type not in READS_SHAPE_ONLY:
                if node.op_type in _CUTS:
                    part = id(current)
                activated = activated or node.op_type in _ACTIVATIONS
                for operand in node.inputs:
                    state = (id(operand), part, activated)
                    if operand is not None and state not in seen:
                        seen.add(state)
                        pending.append((operand, part, activated))
        return frozenset(found)

    def attention_inputs(self, linear: Linear) -> tuple[str, tuple[int, ...]]:
        """Which of q, k and v a linear's output becomes ('q', 'qkv', ...), and in what cores."""
        found = [
            self.cores.slots[id(node), index]
            for node, index, _ in self._readers(linear.output)
            if (id(node), index) in self.cores.slots
        ]
        parts = "".join(part for part in "qkv" if any(part in parts for _, parts in found))
        return parts, tuple(sorted({core for core, _ in found}))

    def gated(self, linear: Linear) -> tuple[Origin, Origin] | None:
        """The two linears, or parts of one, whose product the input is; the activated one first."""
        seen, pending = {id(linear.x)}, [linear.x]
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or id(value) in self.by_output or id(value) in self.cores.results:
                continue
            operands = [operand for operand in node.inputs if operand is not None]
            if node.op_type == "Mul" and domain_of(node) == "":
                sides = [_single(self.origins(operand)) for operand in operands]
                first, second = sides
                if first and second and (first.linear, first.part) != (second.linear, second.part):
                    return (second, first) if second.activated > first.activated else (
                        first, second)  # fmt: skip
            for operand in operands:
                if id(operand) not in seen and node.op_type not in READS_SHAPE_ONLY:
                    seen.add(id(operand))
                    pending.append(operand)
        return None

    def joins_residual(self, linear: Linear) -> bool:
        """Whether the output is added to something else that is computed."""
        for node, index, _ in self._readers(linear.output):
            if node.op_type in _SKIP_NORMS and index < 2:
                return True
            other = node.inputs[1 - index] if node.op_type == "Add" and index < 2 else None
            if other is not None and any(
                origin.linear != linear.name for origin in self.origins(other)
            ):
                return True
        return False

    def reaches_output(self, linear: Linear) -> bool:
        """Whether the output becomes an output of the model, past no other linear."""
        return linear.output.is_graph_output() or any(
            output.is_graph_output()
            for node, index, ends in self._readers(linear.output)
            if not ends
            for output in node.outputs
        )

    def _readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int, bool]]:
        """Every use of a value and of what is made of it; and whether the way ends there."""
        seen, pending = {id(value)}, [value]
        while pending:
            for use in pending.pop().uses():
                node = use.node
                if node.op_type in READS_SHAPE_ONLY:
                    continue
                ends = id(node) in self.by_node or id(node) in self.cores.nodes
                yield node, use.idx, ends
                for output in () if ends else node.outputs:
                    if id(output) not in seen:
                        seen.add(id(output))
                        pending.append(output)


def _single(origins: frozenset[Origin]) -> Origin | None:
    """The one linear, or part of one, that all origins are."""
    keys = {(origin.linear, origin.part) for origin in origins}
    if len(keys) != 1:
        return None
    ((name, part),) = keys
    return Origin(name, -1, part, any(o.activated for o in origins)) if name else None
