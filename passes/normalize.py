"""Bring a graph into the state every other pass relies on; what it computes does not change.

Functions are inlined, and every node has a name of its own, since plans and reports speak of nodes
by name.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes


def normalize(model: ir.Model) -> None:
    """Inline functions and give every node a unique name, in place. Keeps names that are unique."""
    if model.functions:
        common_passes.InlinePass()(model)
    nodes = list(model.graph.all_nodes())
    given = {node.name for node in nodes if node.name}
    taken: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name and node.name not in taken:
            taken.add(node.name)
            continue
        name = node.name or f"{node.op_type}_{index}"
        unique, copies = name, 1
        while unique in taken or unique in given:  # a name given further on is not to be stolen
            copies += 1
            unique = f"{name}_{copies}"
        taken.add(unique)
        node.name = unique
