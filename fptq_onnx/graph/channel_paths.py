"""What may stand between a norm and its linears: nodes after which channel j is still channel j.

Dividing channel j of a value by s_j may happen before or after such a node, the result is the same.
There are two kinds:

    casts, reshapes          every element stays where it is in memory, whatever the shape
    the others               rows are chosen, moved, averaged or multiplied by one number; the
                             channels must be the last axis, before and after
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from fptq_onnx.graph.axes import is_not_last, reshaped_last_size
from fptq_onnx.graph.constants import constant_of, scalar_ints

_STANDARD = ("", "ai.onnx")
_KEEPS_ORDER = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def keeps_order(node: ir.Node) -> bool:
    """Whether a node keeps every element and their order: casts between floats, reshapes."""
    if node.op_type not in _KEEPS_ORDER or node.domain not in _STANDARD:
        return False
    # A cast to integers rounds: what comes after it is not linear in the gain any more.
    return node.op_type != "Cast" or node.attributes["to"].as_int() in _FLOATS


def may_pass(node: ir.Node) -> ir.Value | None:
    """The input that a node might pass on channel by channel; None where it cannot.

    Looks at the node alone. `passes_on` decides, knowing where the channels are.
    """
    if node.domain not in _STANDARD or not node.inputs:
        return None
    if keeps_order(node) or node.op_type in _ROW_WISE:
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
    if keeps_order(node):
        yield node.outputs[0], _last_after_reshape(node, k, last)
    elif last:
        rule = _ROW_WISE.get(node.op_type)
        if rule is None or rule(node, source):
            yield from ((output, True) for output in node.outputs)


def _last_after_reshape(node: ir.Node, k: int, last: bool) -> bool:
    if node.op_type in ("Cast", "Identity"):
        return last
    if node.op_type == "Reshape" and (size := reshaped_last_size(node)) is not None:
        return size == k
    shape = node.outputs[0].shape
    return shape is not None and len(shape) > 0 and shape[-1] == k


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _gather(node: ir.Node, source: ir.Value) -> bool:
    return is_not_last(_attribute(node, "axis", 0), source)


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


# Sums, means and the largest of rows go with positive factors per channel.
_ROW_WISE: dict[str, Callable[[ir.Node, ir.Value], bool]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
}
