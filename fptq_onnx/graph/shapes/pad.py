"""Whether a Pad adds rows of zeros and leaves the last axis as it is.

Exporters compute how many: torch writes a list that begins with the last axis, fills it up with
zeros for the axes it does not name, and turns it around in the graph:

    Concat(list, zeros) -> Reshape [-1, 2] -> Slice backwards -> Transpose -> Reshape [-1]
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of, scalar_ints
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.rank import is_not_last, rank_of
from fptq_onnx.graph.walk_back import input_of

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_TURNED = ("Reshape", "Transpose", "Slice", "Reshape")


def pads_rows(node: ir.Node) -> bool:
    """Whether the padding is certainly zeros, or copies of rows, on other axes than the last.

    Args:
        node: a Pad with its counts as an input, as from opset 11 on.
    """
    mode = node.attributes.get("mode")
    if (mode is None or mode.as_string() == "constant") and not _adds_zeros(input_of(node, 2)):
        return False
    counts, source = input_of(node, 1), node.inputs[0]
    if counts is None or source is None:
        return False
    axes = input_of(node, 3)
    if axes is not None:
        named = scalar_ints(axes)
        return named is not None and all(is_not_last(axis, source) for axis in named)
    first = _before_turning(counts)
    if first is not None:
        return first[:2] == [0, 0]
    entries, rank = _entries(counts), rank_of(source)
    if rank is None or len(entries) != 2 * rank:
        return False
    return entries[rank - 1] == 0 and entries[-1] == 0


def _adds_zeros(value: ir.Value | None) -> bool:
    if value is None:
        return True
    constant = constant_of(value)
    return constant is not None and not constant.load().any()


def _before_casts(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None:
        to = node.attributes.get("to")
        if domain_of(node) != "" or node.op_type not in ("Cast", "Identity"):
            break
        if to is not None and to.as_int() not in _INTEGERS:
            break
        value = node.inputs[0]
    return value


def _before_turning(value: ir.Value) -> list[int | None] | None:
    """The beginning of torch's list, where the counts are one that is turned around."""
    current: ir.Value | None = value
    nodes = []
    for op_type in _TURNED:
        current = _before_casts(current)
        node = current.producer() if current is not None else None
        if node is None or node.op_type != op_type or domain_of(node) != "":
            return None
        nodes.append(node)
        current = node.inputs[0]
    flat, transpose, cut, pairs = nodes
    perm = transpose.attributes.get("perm")
    start, end, axes, steps = (scalar_ints(input_of(cut, index)) for index in (1, 2, 3, 4))
    backwards = (start, axes, steps) == ([-1], [0], [-1]) and end is not None and end[0] < -(2**31)
    swapped = perm is not None and list(perm.as_ints()) == [1, 0]
    shapes = (scalar_ints(input_of(flat, 1)), scalar_ints(input_of(pairs, 1)))
    if not backwards or not swapped or shapes != ([-1], [-1, 2]):
        return None
    return _entries(current)


def _entries(value: ir.Value | None) -> list[int | None]:
    """The first elements of a vector of integers, up to a piece of unknown length.

    One that is computed is None: all pieces have the rank of a vector, so Unsqueeze makes one.
    """
    value = _before_casts(value)
    known = constant_of(value)
    if known is not None:
        return list(scalar_ints(value) or ()) if len(known.shape) == 1 else []
    node = value.producer() if value is not None else None
    if node is None or domain_of(node) != "":
        return []
    if node.op_type == "Unsqueeze":
        return [None]
    found: list[int | None] = []
    for piece in node.inputs if node.op_type == "Concat" else ():
        part = _entries(piece)
        if not part:
            break
        found += part
    return found
