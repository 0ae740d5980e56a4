"""Values no input changes and that are made of few numbers: axes, sizes, positions.

ONNX Runtime looks at them when it infers ranks. What it can compute before it runs must not become
an input of a segment.
"""

from __future__ import annotations

import onnx_ir as ir

_STEPS = 32  # looked at before giving up
_LARGEST = 1024  # elements of a constant such values are made of
# None of them makes many elements of few.
_ARITHMETIC = (
    "Add", "Sub", "Mul", "Div", "Neg", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze",
    "Concat", "Slice", "Gather", "Shape", "Size", "Flatten", "Transpose", "Split", "Min", "Max",
)  # fmt: skip


def is_fixed(value: ir.Value) -> bool:
    """Whether a value is a Constant, or a little arithmetic with small constants."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Constant":
        return True
    pending, steps = [node], 0
    while pending:
        node = pending.pop()
        steps += 1
        if steps > _STEPS or node.op_type not in (*_ARITHMETIC, "Constant"):
            return False
        for read in node.inputs:
            if read is None:
                continue
            if read.is_graph_input():
                return False
            maker = read.producer()
            if maker is not None:
                pending.append(maker)
            elif read.const_value is None or read.const_value.size > _LARGEST:
                return False
    return True
