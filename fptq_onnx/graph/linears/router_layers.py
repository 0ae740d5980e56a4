"""The hidden layers of routers that have several: linears which serve a decision and nothing else.

    linear -> Tanh -> linear -> TopK -> experts

An error in the first moves a token to another expert as an error in the last does. What the router
reads as well as its layers (a residual stream) is no hidden layer of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.linears.sources import SHAPE_ONLY, Sources

_LARGEST_PART = 4  # of the model's weights: what decides is small beside what it decides about


def hidden_layers(routers: Sequence[Linear], sources: Sources) -> dict[str, str]:
    """By name of each hidden layer, the name of the router that it belongs to.

    Args:
        routers: linears whose output decides.
        sources: of their graph.
    """
    found: dict[str, str] = {}
    ends = {id(router.nodes[0]) for router in routers}
    for router in routers:
        for layer in _before(router, ends, sources):
            if id(layer.nodes[0]) not in ends:
                found[layer.name] = router.name
                ends.add(id(layer.nodes[0]))
    return found


def _before(router: Linear, ends: set[int], sources: Sources) -> list[Linear]:
    """The hidden layers of one router, the last one first."""
    found: list[Linear] = []
    inner, size = set(ends), 0
    pending = [router]
    while pending:
        layers = sources.linears_before(pending.pop().x)
        if layers is None:
            continue
        # The later of two comes first: an earlier one may lead to it as well.
        new = [layer for layer in sources.latest_first(layers) if id(layer.nodes[0]) not in inner]
        size += sum(layer.k * layer.n for layer in new)
        if size * _LARGEST_PART > sources.products.size:
            return []
        with_new = set(inner)
        for layer in new:
            if not _ends_in(layer, with_new, sources):
                break
            with_new.add(id(layer.nodes[0]))
        else:
            inner = with_new
            found += new
            pending += new
    return found


def _ends_in(layer: Linear, ends: set[int], sources: Sources) -> bool:
    """Whether all that is computed from a layer goes into some nodes."""
    pending = [layer.output]
    seen = {id(layer.output)}
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return False
        for use in value.uses():
            node: ir.Node = use.node
            if node.op_type in SHAPE_ONLY or id(node) in ends:
                continue
            if node.graph is not sources.graph or id(node) in sources.by_product:
                return False
            if node in sources.products:
                return False
            for made in node.outputs:
                if id(made) not in seen:
                    seen.add(id(made))
                    pending.append(made)
    return True
