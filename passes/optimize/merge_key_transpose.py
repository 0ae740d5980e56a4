"""Transpose keys by one node that ONNX Runtime takes into the product after it.

    [b, h, t, d] -> Reshape [b h, t, d] -> Transpose -> Reshape [b, h, d, t]
    [b, h, t, d] -> Transpose [b, h, d, t]

torch's dynamo exporter writes the first: every decode step then copies all keys of the cache.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.op_domains import is_onnx_op
from fptq_onnx.graph.shapes.shape_table import SizeTable
from fptq_onnx.graph.shapes.symbolic_shapes import known_sizes
from fptq_onnx.passes._contract import PassResult, Refusal, rewrite_each
from fptq_onnx.passes._edit import remove_unused

_SWAP_ROWS = [0, 2, 1]
_SWAP_IN_HEADS = [0, 1, 3, 2]


def merge_key_transpose(model: ir.Model) -> PassResult:
    """Rewrite in place.

    Args:
        model: its main graph is looked at.
    """
    graph, known = model.graph, known_sizes(model.graph)
    return rewrite_each(
        graph, lambda node: _merge(graph, known, node), left="keys are transposed by three nodes"
    )


def _merge(graph: ir.Graph, known: SizeTable, node: ir.Node) -> bool:
    found = _three(node)
    if found is None:
        return False
    source, rows = found
    before, between, after = (known.shape(v) for v in (source, rows, node.outputs[0]))
    if before is None or len(before) != 4:
        return False
    wanted = (before[0], before[1], before[3], before[2])
    if between is None or between[1:] != before[2:] or after != wanted:
        raise Refusal(f"from {before} to {after} is not known to be the same heads")
    old = node.outputs[0]
    plain = ir.node("Transpose", [source], {"perm": _SWAP_IN_HEADS}, name=f"{node.name}/plain")
    new = plain.outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, plain)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
    remove_unused(graph, old)
    return True


def _three(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """What the first Reshape reads and makes, where a node is the last of the three."""
    if not is_onnx_op(node, "Reshape") or node.inputs[0] is None:
        return None
    turn = node.inputs[0].producer()
    if turn is None or not is_onnx_op(turn, "Transpose"):
        return None
    perm = turn.attributes.get("perm")
    if perm is None or list(perm.as_ints()) != _SWAP_ROWS or turn.inputs[0] is None:
        return None
    first = turn.inputs[0].producer()
    if first is None or not is_onnx_op(first, "Reshape"):
        return None
    source = first.inputs[0]
    return None if source is None else (source, first.outputs[0])
