"""Which columns of a value a Slice of its last dimension takes.

TorchScript writes chunk() as Slices between numbers that the graph computes from the value's shape:
the size of the last dimension is known where the value is a linear's output.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.walk_back import input_of, int_of

_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a // b,  # sizes are not negative: to zero and down are the same
}


def is_last(axis: int | None, value: ir.Value | None) -> bool:
    """Whether an axis of a value is its last: -1, or 2 of [batch, tokens, channels]."""
    if axis == -1:
        return True
    shape = None if value is None else value.shape
    return axis is not None and axis == (2 if shape is None else len(shape) - 1)


def span_of(node: ir.Node, n: int) -> tuple[int, int] | None:
    """First column and the one after the last of a Slice of the last dimension, of n columns."""
    axes, steps = scalar_ints(input_of(node, 3)), input_of(node, 4)
    start, stop = (_number(input_of(node, index), node, n) for index in (1, 2))
    if start is None or stop is None or axes is None or len(axes) != 1:
        return None
    if not is_last(axes[0], node.inputs[0]):
        return None
    if steps is not None and scalar_ints(steps) != [1]:
        return None
    start, stop, _ = slice(start, stop).indices(n)
    return (start, stop) if start < stop else None


def picks_others(n: int) -> Callable[[ir.Node, ir.Node], bool]:
    """Whether another reader of a value takes parts of it that a node on the way does not.

    Args:
        n: columns of the value that Slices cut.
    """

    def decide(node: ir.Node, other: ir.Node) -> bool:
        if node.op_type != other.op_type or domain_of(other) != "":
            return False
        if node.op_type == "Gather":
            indices = [scalar_ints(item.inputs[1]) for item in (node, other)]
            same_axis = int_of(node, "axis") == int_of(other, "axis")
            if not same_axis or any(index is None or min(index) < 0 for index in indices):
                return False  # from the end: it may be the same part
            return indices[0] != indices[1]
        if node.op_type == "Slice":
            one, two = span_of(node, n), span_of(other, n)
            return one is not None and two is not None and (one[1] <= two[0] or two[1] <= one[0])
        return False

    return decide


def _number(value: ir.Value | None, node: ir.Node, n: int) -> int | None:
    """One number, constant or computed from n as the last dimension of what a node reads."""
    found = scalar_ints(value)
    if found is not None:
        return found[0] if len(found) == 1 else None
    maker = value.producer() if value is not None else None
    if maker is None or domain_of(maker) != "":
        return None
    if maker.op_type == "Gather":
        shape, index = input_of(maker, 0), scalar_ints(input_of(maker, 1))
        counted = shape.producer() if shape is not None else None
        if counted is None or counted.op_type != "Shape" or counted.attributes:
            return None
        if input_of(counted, 0) is not input_of(node, 0) or index is None or len(index) != 1:
            return None
        return n if is_last(index[0], input_of(node, 0)) else None
    if maker.op_type in ("Unsqueeze", "Squeeze", "Cast", "Identity"):
        return _number(input_of(maker, 0), node, n)
    if maker.op_type in _ARITHMETIC:
        left, right = (_number(input_of(maker, index), node, n) for index in (0, 1))
        if left is None or right is None or (maker.op_type == "Div" and (left < 0 or right < 1)):
            return None
        return _ARITHMETIC[maker.op_type](left, right)
    return None
