"""Bring a graph into the state every other pass relies on; what it computes does not change.

Functions are inlined, linears that other ops hold inside are MatMuls of their own, what would be
computed in bfloat16 is computed in float32, and every node has a name of its own, since plans and
reports speak of nodes by name. Nodes that no output depends on are gone, as ONNX Runtime drops
them: the pooler of an encoder whose second output was cut off.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.passes.extract_linears import extract_linears
from fptq_onnx.passes.widen_bfloat16 import widen_bfloat16


def normalize(model: ir.Model) -> None:
    """Do all of that in place. Names that are unique are kept."""
    if model.functions:
        common_passes.InlinePass()(model)
    widen_bfloat16(model)
    extract_linears(model)
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
    common_passes.RemoveUnusedNodesPass()(model)
