"""Why the right operand of a product is no constant: computed from inputs alone, or from a weight.

MatMul(q, k)                     both are computed: attention
MatMul(x, Gather(W, expert))     a weight is chosen while the model runs: one expert's
MatMul(x, CumSum(W, axis))       made of constants by an op that is not followed
MatMul(Expand(W, sizes), p)      the constant is on the left: rotary frequencies times positions
MatMul(f, Range(Shape(x)))       made of sizes alone: positions, which are computed too
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.op_domains import domain_of

_PICKS = ("Gather", "GatherND", "GatherElements", "Slice")
_KEEPS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose")
_GIVE_SIZES = ("Shape", "Size")
# Of these the first operand alone is in the result; the others say how large it is, or where.
_TAKE_SIZES = ("Expand", "Reshape", "Slice", "Tile", "Split", "Squeeze", "Unsqueeze", "Pad")
LEFT = "its constant is the left operand (a rotary table, or a transposed product)"


def why_computed(left: ir.Value | None, value: ir.Value | None) -> str:
    """The reason a product's operand is no weight, for people.

    Args:
        left: the other operand.
        value: the operand, which `constant_of` finds no constant behind.
    """
    if constant_of(left) is not None:
        return LEFT
    picked = _picked_from(value)
    if picked:
        return f"its weight is picked from {picked} while the model runs (one expert's, or a table)"
    maker = _made_of_constants(value)
    if maker is not None:
        return f"its weight is made by {maker.op_type}, which is not looked through"
    if _made_of_constants(left) is not None:
        return LEFT
    return "both operands are computed (attention, or another activation product)"


def _picked_from(value: ir.Value | None) -> str:
    """The name of the weight that rows or matrices are picked from; ''."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _PICKS + _KEEPS or domain_of(node) != "":
            return ""
        value = node.inputs[0]
        table = constant_of(value)
        if table is not None:
            return table.name if len(table.shape) > 1 else ""
    return ""


def _made_of_constants(value: ir.Value | None) -> ir.Node | None:
    """The first node, from the constants on, that `constant_of` does not follow; or None.

    None as well where anything but constants is among what the value is computed from: an input, or
    the sizes of one (positions counted from them). Sizes that a constant is expanded to are not in
    the value. And None where no floating-point numbers are among it: integers make positions.
    """
    seen, pending, unknown, floats = {id(value)}, [value], None, False
    while pending:
        current = pending.pop()
        constant = constant_of(current)
        if current is None or constant is not None:
            floats |= constant is not None and constant.dtype.is_floating_point()
            continue
        node = current.producer()
        if node is None or not node.inputs or node.op_type in _GIVE_SIZES:
            return None
        unknown = node
        for operand in node.inputs[:1] if node.op_type in _TAKE_SIZES else node.inputs:
            if id(operand) not in seen:
                seen.add(id(operand))
                pending.append(operand)
    return unknown if floats else None
