"""Which axis is the last one, where exporters left no shapes: ranks followed from their makers."""

from __future__ import annotations

import math

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of

# Nodes looked at before giving up; what tells a rank is rarely further than a layer away.
_MOST_STEPS = 64
_SAME_RANK = (
    "Cast", "Identity", "Slice", "Split", "Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "Sqrt",
    "Softmax", "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "Concat",
    "Dropout", "Pad", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Reciprocal",
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


def rank_of(value: ir.Value) -> int | None:
    """The rank of a value; None where nothing near tells."""
    return _rank_from(value, {})


def _rank_from(value: ir.Value, seen: dict[int, int | None]) -> int | None:
    """The same; `seen` has what was looked at, by value."""
    if id(value) in seen or len(seen) > _MOST_STEPS:
        return seen.get(id(value))
    seen[id(value)] = None
    known, node = _known_rank(value), value.producer()
    if known is None and node is not None and node.inputs and None not in node.inputs[:2]:
        operands = [operand for operand in node.inputs[:2] if operand is not None]
        if node.op_type == "Gemm":
            known = 2
        elif node.op_type in (*_SAME_RANK, "BatchNormalization"):
            known = _rank_from(operands[0], seen)
        elif node.op_type == "MatMul":
            weight = constant_of(operands[1])
            plain = weight is not None and len(weight.shape) == 2
            known = _rank_from(operands[0], seen) if plain else None
        elif node.op_type in _BROADCAST and len(node.inputs) == 2:
            ranks = [_rank_from(operand, seen) for operand in operands]
            known = max((rank for rank in ranks if rank is not None), default=None)
            known = None if None in ranks else known
    seen[id(value)] = known
    return known


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
    if node.op_type == "Unsqueeze" and node.inputs[0] is not None and len(node.inputs) > 1:
        inner, axes = _known_rank(node.inputs[0]), constant_of(node.inputs[1])
        return None if inner is None or axes is None else inner + math.prod(axes.shape)
    if node.op_type == "Reshape" and node.inputs[1] is not None:
        sizes = node.inputs[1]
        made_by = sizes.producer()
        if made_by is not None and made_by.op_type == "Concat":
            # torch joins sizes one by one
            parts = [_counts_one(part) for part in made_by.inputs]
            if all(parts):
                return len(parts)
            if not any(part is False for part in parts):
                return None
        constant = constant_of(sizes)
        return constant.shape[0] if constant is not None and constant.shape else None
    return None


def _counts_one(size: ir.Value | None) -> bool | None:
    """Whether a piece of a shape has one element; None where nothing tells."""
    constant = constant_of(size)
    if constant is not None:
        return constant.shape == (1,)
    made_by = size.producer() if size is not None else None
    # A shape is a vector, and so are its pieces: what Unsqueeze makes one of is a scalar.
    return True if made_by is not None and made_by.op_type == "Unsqueeze" else None
