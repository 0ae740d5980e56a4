"""Bring a graph into the state every other pass relies on; what it computes does not change.

Functions are inlined, linears that other ops hold inside are MatMuls of their own, what would be
computed in bfloat16 is computed in float32, and every node has a name of its own, since plans and
reports speak of nodes by name. Nodes that no output depends on are gone, as ONNX Runtime drops
them: the pooler of an encoder whose second output was cut off.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.passes._contract import PassResult, apply
from fptq_onnx.passes.conv1x1_to_matmul import conv1x1_to_matmul
from fptq_onnx.passes.extract_linears import extract_linears
from fptq_onnx.passes.widen_bfloat16 import widen_bfloat16


def normalize(model: ir.Model) -> PassResult:
    """Do all of that in place.

    Raises:
        PassError: see apply.
    """
    done = apply(model, STEPS)
    return PassResult(done.changed, done.declined)


def _inline_functions(model: ir.Model) -> PassResult:
    functions = len(model.functions)
    if functions:
        common_passes.InlinePass()(model)
    return PassResult(functions)


def _give_unique_names(model: ir.Model) -> PassResult:
    """To nodes; names that are unique are kept."""
    nodes = list(model.graph.all_nodes())
    given = {node.name for node in nodes if node.name}
    taken: set[str] = set()
    changed = 0
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
        changed += 1
    return PassResult(changed)


def _remove_unused_nodes(model: ir.Model) -> PassResult:
    before = len(model.graph)
    common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(before - len(model.graph))


STEPS = (
    _inline_functions,
    widen_bfloat16,
    conv1x1_to_matmul,
    extract_linears,
    _give_unique_names,
    _remove_unused_nodes,
)
