"""A model cut at its linears: what must run between the linears of one layer group and the next.

A group is one activation with all the linears that read it. The segment of a group is every node
that its activation needs and no earlier segment ran, linears left out: their outputs are inputs of
segments.

    inputs -> [segment 0] -> x0 -> linears -> y0 -> [segment 1] -> x1 -> linears -> y1 -> ...

So each node runs once for all samples, and whoever goes through the groups computes the linears.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.graph.fixed_values import is_fixed
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.node_reads import node_reads
from fptq_onnx.graph.routed_values import routed_values


@dataclass(frozen=True)
class Segment:
    """What runs before a layer group.

    inputs: names of values made by earlier segments or linears.
    outputs: names of values to keep: the layer group's activation and what later segments need.
    last_uses: names of values that nothing after this layer group needs.
    common: whether no linear's output is an ancestor of what the segment makes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...]
    common: bool


@dataclass(frozen=True)
class LayerGroup:
    """One activation with its linears, and the segment that makes it.

    x: name of the activation.
    linears: all that read it.
    segment: what runs before.
    routed: whether a router picks its rows, which quantization then may change.
    """

    x: str
    linears: tuple[Linear, ...]
    segment: Segment
    routed: bool = False


def find_layer_groups(graph: ir.Graph, linears: Sequence[Linear]) -> tuple[LayerGroup, ...]:
    """The layer groups of a model in graph order.

    Args:
        graph: the main graph, topologically sorted.
        linears: of that graph.
    """
    by_input: dict[str, list[Linear]] = {}
    for linear in linears:
        by_input.setdefault(linear.x.name or "", []).append(linear)
    ends = {id(linear.output) for linear in linears}
    routed = routed_values(graph, linears)
    done: set[int] = set()  # nodes of earlier segments
    made_in: dict[int, int] = {}  # value -> segment
    by_id: dict[int, ir.Value] = {}
    reads: list[dict[int, ir.Value]] = []  # of each segment, from outside of it
    common_values: set[int] = set()
    commons: list[bool] = []
    for index, group in enumerate(by_input.values()):
        nodes, outside = _ancestors(group[0].x, done, ends)
        done |= {id(node) for node in nodes}
        common = all(id(value) in common_values for value in outside.values())
        commons.append(common)
        for node in nodes:
            for value in node.outputs:
                made_in[id(value)] = index
                by_id[id(value)] = value
                if common:
                    common_values.add(id(value))
        # The activation itself may have been made before: the input of a later branch.
        outside.setdefault(id(group[0].x), group[0].x)
        reads.append(outside)
    last: dict[str, int] = {}
    for index, outside in enumerate(reads):
        for value in outside.values():
            last[value.name or ""] = index
    groups = []
    for index, (x, group) in enumerate(by_input.items()):
        later = {
            value.name or ""
            for outside in reads[index + 1 :]
            for key, value in outside.items()
            if made_in.get(key) == index
        }
        inputs = tuple(
            value.name or ""
            for key, value in reads[index].items()
            if made_in.get(key) != index and not value.is_graph_input()
        )
        own = {x} if made_in.get(id(group[0].x)) == index else set()
        segment = Segment(
            inputs,
            tuple(sorted(later | own)),
            tuple(name for name, at in last.items() if at == index),
            commons[index],
        )
        groups.append(LayerGroup(x, tuple(group), segment, id(group[0].x) in routed))
    return tuple(groups)


def needed_later(groups: Sequence[LayerGroup]) -> set[str]:
    """Names of all values that some segment reads from outside."""
    return {name for group in groups for name in group.segment.inputs}


def segment_model(model: ir.Model, segment: Segment) -> ir.Model:
    """A model of the segment alone: its inputs are graph inputs, beside the original's.

    Types of the inputs are left open where the graph does not tell them; ONNX Runtime infers them
    from nothing, so callers set them from the arrays (`input_types`).
    """
    clone = model.clone()
    graph = clone.graph
    values = {value.name: value for node in graph for value in node.outputs}
    for name in segment.inputs:
        old = values[name]
        new = ir.Value(name=f"{name}__cut", type=old.type)
        graph.inputs.append(new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.outputs.clear()
    for name in segment.outputs:
        graph.outputs.append(values[name])
    common_passes.RemoveUnusedNodesPass()(clone)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return clone


def _ancestors(
    x: ir.Value, done: set[int], ends: set[int]
) -> tuple[list[ir.Node], dict[int, ir.Value]]:
    """Nodes that make x and are not done, stopping at linears; and what they read from outside."""
    nodes: list[ir.Node] = []
    outside: dict[int, ir.Value] = {}
    seen: set[int] = set()
    pending = [x]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value is not x and is_fixed(value):
            continue  # made anew in every segment that reads it, as initializers are there
        if value.is_graph_input() or (node is not None and (id(value) in ends or id(node) in done)):
            outside[id(value)] = value
            continue
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        nodes.append(node)
        pending.extend(node_reads(node))
    if id(x) in outside and not nodes:
        return nodes, {id(x): x}
    return nodes, {key: value for key, value in outside.items() if not value.is_graph_input()}
