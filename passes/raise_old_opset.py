"""Bring a model of an opset before 17, which everything else here is written for, to 17.

onnx's own version converter wants the weights in one protobuf message, stops at ops that ONNX
Runtime keeps in the default domain, and spells every Softmax as Flatten, Softmax and Reshape,
behind which no attention is recognized. So the few ops that changed are rewritten one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.defs
import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.passes._known_ranks import known_ranks
from fptq_onnx.passes._older_ops import ADAPTERS, Rewriter

WANTED, OLDEST = 17, 7
_RANKS_MATTER_BEFORE = 13
_IR_VERSION = 8  # what opset 17 came with
_INPUTS_OF_THEIR_OWN = 4  # from this IR version on, an initializer need not be an input


def raise_old_opset(model: ir.Model) -> int | None:
    """Rewrite in place; big weights are not read.

    Args:
        model: as loaded.

    Returns:
        The opset it had, None where that was 17 or newer and nothing changed.

    Raises:
        FptqError: a node that means nothing in opset 17, or an opset before 7.
    """
    opset = model.opset_imports.get("", WANTED)
    functions = [f for f in model.functions.values() if f.opset_imports.get("", WANTED) < WANTED]
    if opset >= WANTED and not functions:
        return None
    taken = _names(model)
    if opset < WANTED:
        if model.ir_version < _INPUTS_OF_THEIR_OWN:  # every initializer had to be one there
            graph = model.graph
            for value in [value for value in graph.inputs if value.is_initializer()]:
                graph.inputs.remove(value)
        ranks = known_ranks(model) if opset < _RANKS_MATTER_BEFORE else {}
        for graph in list(model.graphs()):
            _raise(graph, list(graph), opset, ranks, taken)
        model.opset_imports[""] = WANTED
        model.ir_version = max(model.ir_version, _IR_VERSION)
    for function in functions:
        _raise(function, list(function), function.opset_imports[""], {}, taken)
        function.opset_imports[""] = WANTED
    return opset if opset < WANTED else None


def _raise(
    graph: ir.Graph | ir.Function,
    nodes: Iterable[ir.Node],
    opset: int,
    ranks: dict[str, int],
    taken: set[str],
) -> None:
    if opset < OLDEST:
        raise FptqError(f"opset {opset} is older than {OLDEST}, the oldest ONNX Runtime takes")
    rewriter = Rewriter(graph, ranks, taken)
    for node in nodes:
        if node.domain != "":
            continue
        for version in range(opset + 1, WANTED + 1):
            adapt = ADAPTERS.get(version, {}).get(node.op_type)
            if adapt is not None:
                adapt(node, rewriter)
        if onnx.defs.has(node.op_type):  # others are ONNX Runtime's own, and stay
            _check_known(node)


def _check_known(node: ir.Node) -> None:
    try:
        known = not onnx.defs.get_schema(node.op_type, WANTED).deprecated
    except onnx.defs.SchemaError:
        known = False
    if not known:
        raise FptqError(f"node {node.name or node.outputs[0].name!r}: opset {WANTED} has no "
                        f"{node.op_type}")  # fmt: skip


def _names(model: ir.Model) -> set[str]:
    """Every name of a value or a node, in subgraphs and functions too."""
    found: set[str] = set()
    holders: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in holders:
        found |= {value.name or "" for value in graph.inputs}
        if isinstance(graph, ir.Graph):
            found |= set(graph.initializers)
        for node in graph:
            found.add(node.name or "")
            found |= {value.name or "" for value in node.outputs}
    return found
