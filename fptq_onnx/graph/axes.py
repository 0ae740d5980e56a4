"""Which axis is the last one, where exporters left no shapes: ranks followed from their makers."""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of, scalar_ints

# Nodes looked at before giving up; what tells a rank is rarely further than a layer away.
_MOST_STEPS = 64
_SAME_RANK = (
    "Cast", "Identity", "Slice", "Split", "Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "Sqrt",
    "Softmax", "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "Concat",
    "Dropout", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Reciprocal",
)  # fmt: skip
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Where")


def is_not_last(axis: int, value: ir.Value) -> bool:
    """Whether an axis is certainly another than the last one of a value."""
    return axis != -1 if axis < 0 else least_rank(value) >= axis + 2


def least_rank(value: ir.Value) -> int:
    """A rank that a value has at least; 0 where nothing near tells."""
    best, steps = 0, 0
    pending = [value]
    while pending and steps < _MOST_STEPS:
        current = pending.pop()
        steps += 1
        known = _known_rank(current)
        if known is not None:
            best = max(best, known)
            continue
        node = current.producer()
        if node is None:
            continue
        if node.op_type in _SAME_RANK and node.inputs[0] is not None:
            pending.append(node.inputs[0])
        elif node.op_type in _BROADCAST:
            pending += [operand for operand in node.inputs if operand is not None]
        elif node.op_type == "Gather" and None not in node.inputs[:2]:
            data, indices = (_known_rank(operand) for operand in node.inputs[:2] if operand)
            if data is not None and indices is not None:
                best = max(best, data - 1 + indices)
    return best


def reshaped_last_size(node: ir.Node) -> int | None:
    """The last dimension a Reshape asks for, where it is a constant; None where nothing tells."""
    sizes = node.inputs[1]
    made_by = sizes.producer() if sizes is not None else None
    if made_by is not None and made_by.op_type == "Concat":
        sizes = made_by.inputs[-1]
    found = scalar_ints(sizes)
    return found[-1] if found and found[-1] > 0 else None


def _known_rank(value: ir.Value) -> int | None:
    if value.shape is not None:
        return len(value.shape)
    constant = constant_of(value)
    if constant is not None:
        return len(constant.shape)
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Transpose" and (perm := node.attributes.get("perm")) is not None:
        return len(perm.as_ints())
    if node.op_type == "Reshape" and node.inputs[1] is not None:
        sizes = node.inputs[1]
        made_by = sizes.producer()
        if made_by is not None and made_by.op_type == "Concat":
            # torch joins sizes one by one
            parts = [constant_of(part) for part in made_by.inputs]
            if all(part is None or part.shape == (1,) for part in parts):
                return None if any(part is None for part in parts) else len(parts)
        constant = constant_of(sizes)
        return constant.shape[0] if constant is not None and constant.shape else None
    return None
