"""Outputs of a folded model that differ from the original's by the scales, not by an error.

A fold into v divides what the cache holds. Such outputs belong to the folded model alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from fptq_onnx.graph.folding.linear_sites import find_linear_sites
from fptq_onnx.graph.linears.linears import Linear

_KEEPS = {
    "Reshape", "Transpose", "Concat", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Cast",
    "Identity", "Expand",
}  # fmt: skip
_PRESENT_VALUES = 2  # of all ops that compute attention


def scaled_outputs(linears: Sequence[Linear], folded: Collection[str]) -> frozenset[str]:
    """Names of the outputs that hold divided values.

    Args:
        linears: of the original graph.
        folded: names of what took smoothing scales.
    """
    by_name = {linear.name: linear for linear in linears}
    own = {id(linear.nodes[0]) for linear in linears}
    found: set[str] = set()
    for site in find_linear_sites(linears).values():
        if site.through_attention and site.name in folded:
            reached = _reached(by_name[site.name].output, own)
            # A linear of keys and values at once leads to both caches.
            values = {name for name in reached if "key" not in name.lower()}
            found |= values or reached
    return frozenset(found)


def _reached(start: ir.Value, own: Collection[int]) -> set[str]:
    found: set[str] = set()
    seen, pending = {id(start)}, [start]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            found.add(value.name or "")
        for use in value.uses():
            node = use.node
            if node.op_type.endswith("Attention"):
                onward = list(node.outputs[_PRESENT_VALUES : _PRESENT_VALUES + 1])
            elif node.op_type in _KEEPS and id(node) not in own:
                onward = list(node.outputs)
            else:
                onward = []
            for output in onward:
                if id(output) not in seen:
                    seen.add(id(output))
                    pending.append(output)
    return found
