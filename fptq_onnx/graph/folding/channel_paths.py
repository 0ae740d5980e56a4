"""What may stand between a norm and its linears: nodes after which channel j is still channel j.

Dividing channel j of a value by s_j may happen before or after such a node, the result is the same.
There are two kinds:

    casts, reshapes          every element stays where it is in memory, whatever the shape
    the others               rows are chosen, moved, averaged, multiplied by one number, added as
                             zeros; the channels must be the last axis, before and after

Relu is one of the first kind, as scales are positive. Concat joins rows: all of them must come
from the same value (tokens rolled around, as in Swin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of, scalar_ints
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.last_dim import last_size
from fptq_onnx.graph.shapes.pad import pads_rows
from fptq_onnx.graph.shapes.rank import is_not_last

_SAME_PLACE = ("Cast", "Identity", "Relu")
_KEEPS_ORDER = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def keeps_order(node: ir.Node) -> bool:
    """Whether a node keeps every element and their order: casts between floats, reshapes."""
    if node.op_type not in _KEEPS_ORDER or domain_of(node) != "":
        return False
    # A cast to integers rounds: what comes after it is not linear in the gain any more.
    return node.op_type != "Cast" or node.attributes["to"].as_int() in _FLOATS


def may_pass(node: ir.Node) -> ir.Value | None:
    """The input that a node might pass on channel by channel; None where it cannot.

    Looks at the node alone. `passes_on` decides, knowing where the channels are.
    """
    if domain_of(node) != "" or not node.inputs:
        return None
    if keeps_order(node) or node.op_type in ("Relu", "Concat") or node.op_type in _ROW_WISE:
        source = node.inputs[0]  # a Gather from a table passes nothing on
        return None if source is None or constant_of(source) is not None else source
    if node.op_type in ("Mul", "Div"):
        for index in (0, 1) if node.op_type == "Mul" else (0,):
            factor = constant_of(node.inputs[1 - index])
            if factor is not None and all(size == 1 for size in factor.shape):
                return node.inputs[index]
    return None


def passes_on(
    node: ir.Node, source: ir.Value, k: int, last: bool
) -> Iterator[tuple[ir.Value, bool]]:
    """The outputs of a node in which channel j is channel j of its input.

    Args:
        node: reads the source.
        source: a value with k channels.
        k: how many.
        last: whether the channels are known to be the last axis of the source; if not, they are
            every k consecutive elements.

    Yields:
        Each such output, with `last` for it. Nothing where the node mixes channels.
    """
    if may_pass(node) is not source or sum(value is source for value in node.inputs) != 1:
        return
    if keeps_order(node) or node.op_type == "Relu":
        yield node.outputs[0], _last_after_reshape(node, k, last)
    elif last and node.op_type != "Concat":  # one input alone tells nothing: see Joined
        rule = _ROW_WISE.get(node.op_type)
        if rule is None or rule(node, source):
            yield from ((output, True) for output in node.outputs)


class Joined:
    """Concats met on the ways from one value, each passed when all its inputs come from there."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[ir.Node, set[int]]] = {}

    def takes(self, node: ir.Node, index: int) -> bool:
        """Note that input `index` is such a value; False where it is no Concat of whole rows."""
        value, axis = node.inputs[index], node.attributes.get("axis")
        if node.op_type != "Concat" or domain_of(node) != "" or value is None:
            return False
        if axis is None or not is_not_last(axis.as_int(), value):
            return False
        self._met.setdefault(id(node), (node, set()))[1].add(index)
        return True

    def completed(self, node: ir.Node) -> Sequence[ir.Value]:
        """The output of a Concat whose last input was just noted."""
        return node.outputs if len(self._met[id(node)][1]) == len(node.inputs) else ()

    def incomplete(self) -> ir.Node | None:
        """A Concat with another input than those from the value."""
        return next((n for n, seen in self._met.values() if len(seen) < len(n.inputs)), None)


def _last_after_reshape(node: ir.Node, k: int, last: bool) -> bool:
    if node.op_type in _SAME_PLACE:
        return last
    return last_size(node.outputs[0]) == k


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _gather(node: ir.Node, source: ir.Value) -> bool:
    return is_not_last(_attribute(node, "axis", 0), source)


def _gather_nd(node: ir.Node, source: ir.Value) -> bool:
    picks = node.inputs[1]
    known = constant_of(picks) or picks
    size = known.shape[-1] if known is not None and known.shape else None
    if not isinstance(size, int):
        return False
    return is_not_last(_attribute(node, "batch_dims", 0) + size - 1, source)


def _split(node: ir.Node, source: ir.Value) -> bool:
    return is_not_last(_attribute(node, "axis", 0), source)


def _slice(node: ir.Node, source: ir.Value) -> bool:
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return False
    axes = scalar_ints(node.inputs[3])
    return axes is not None and all(is_not_last(axis, source) for axis in axes)


def _transpose(node: ir.Node, source: ir.Value) -> bool:
    perm = node.attributes.get("perm")
    if perm is None:
        return False
    axes = perm.as_ints()
    return axes[-1] == len(axes) - 1


def _reduce(node: ir.Node, source: ir.Value) -> bool:
    given = node.attributes.get("axes")
    if given is not None:
        axes = list(given.as_ints())
    else:
        found = scalar_ints(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = found or []
    return bool(axes) and all(is_not_last(axis, source) for axis in axes)


def _pad(node: ir.Node, source: ir.Value) -> bool:
    return pads_rows(node)


# Sums, means and the largest of rows go with positive factors per channel.
_ROW_WISE: dict[str, Callable[[ir.Node, ir.Value], bool]] = {
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "Pad": _pad,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
}
