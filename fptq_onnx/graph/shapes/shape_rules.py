"""The shape that a node gives its output, from those of its inputs."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from fptq_onnx.graph.shapes.dim_arithmetic import Size, Sizes, broadcast, reshaped, summed
from fptq_onnx.graph.shapes.integer_rules import number, shape_integers, slice_integers
from fptq_onnx.graph.shapes.shape_table import SizeTable, own_name
from fptq_onnx.graph.walk_back import input_of

_SAME = {
    "Cast", "Clip", "Cos", "CumSum", "Dropout", "Erf", "Exp", "Gelu", "Identity", "IsNaN",
    "LayerNormalization", "LpNormalization", "Neg", "Not", "RMSNormalization", "Reciprocal", "Relu",
    "ScatterND", "Sigmoid", "SimplifiedLayerNormalization", "Sin", "Softmax", "Sqrt", "Tanh",
    "Trilu",
}  # fmt: skip
_BROADCAST = {
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
    "Mod", "Mul", "Or", "Pow", "Sub", "Where",
}  # fmt: skip


def _unknown(output: ir.Value, rank: int) -> list[str]:
    """Names for sizes of a value that nothing tells."""
    return [f"{own_name(output)}[{axis}]" for axis in range(rank)]


def _same(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    return known.shape(input_of(node, 0)) if output is node.outputs[0] else None


def _broadcast(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    result: Sizes = ()
    for operand in node.inputs:
        shape = known.shape(operand)
        if shape is None:
            return None
        result = broadcast(result, shape, own_name(output))
    return result


def _matmul(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    a, b = (known.shape(input_of(node, index)) for index in (0, 1))
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    return (*broadcast(a[:-2], b[:-2], own_name(output)), a[-2], b[-1])


def _gemm(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    a, b = (known.shape(input_of(node, index)) for index in (0, 1))
    if a is None or b is None:
        return None
    return (a[number(node, "transA", 0)], b[1 - number(node, "transB", 0)])


def _transpose(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, perm = known.shape(input_of(node, 0)), node.attributes.get("perm")
    if shape is None:
        return None
    return shape[::-1] if perm is None else tuple(shape[axis] for axis in perm.as_ints())


def _unsqueeze(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, axes = known.shape(input_of(node, 0)), known.integer(input_of(node, 1))
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    new, rest = {int(axis) % rank for axis in axes}, iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


def _squeeze(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, axes = known.shape(input_of(node, 0)), known.integer(input_of(node, 1))
    if shape is None or (axes is None and (len(shape) != 1 or input_of(node, 1) is not None)):
        return None
    gone = {int(axis) % len(shape) for axis in axes} if axes is not None else {0}
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _concat(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shapes = [known.shape(operand) for operand in node.inputs]
    first = shapes[0]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return None
    axis = number(node, "axis", 0) % len(first)
    total = summed(shape[axis] for shape in shapes if shape is not None)
    return (*first[:axis], total, *first[axis + 1 :])


def _reshape(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, wanted = known.shape(input_of(node, 0)), known.integer(input_of(node, 1))
    if wanted is None:
        return None
    zero = not number(node, "allowzero", 0)
    return reshaped(shape, wanted, zero_copies=zero, unknown=_unknown(output, len(wanted)))


def _expand(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, wanted = known.shape(input_of(node, 0)), known.integer(input_of(node, 1))
    return None if shape is None or wanted is None else broadcast(shape, wanted, own_name(output))


def _gather(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, picks = (known.shape(input_of(node, index)) for index in (0, 1))
    if shape is None or picks is None:
        return None
    axis = number(node, "axis", 0) % len(shape)
    return (*shape[:axis], *picks, *shape[axis + 1 :])


def _shape(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    found = shape_integers(known, node)
    return None if found is None else (len(found),)


def _slice(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape = known.shape(input_of(node, 0))
    axes = known.integer(input_of(node, 3))
    if shape is None or not shape:
        return None
    if len(shape) == 1 and (found := slice_integers(known, node)) is not None:
        return (len(found),)
    unknown = _unknown(output, len(shape))
    cut = {int(axis) % len(shape) for axis in axes} if axes is not None else range(len(shape))
    return tuple(unknown[axis] if axis in cut else size for axis, size in enumerate(shape))


def _filled(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    return known.integer(input_of(node, 0))


def _split(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape = known.shape(input_of(node, 0))
    if shape is None:
        return None
    axis = number(node, "axis", 0) % len(shape)
    given, whole, count = known.integer(input_of(node, 1)), shape[axis], len(node.outputs)
    part: Size = f"{own_name(output)}[{axis}]"
    if given is not None:
        part = given[output.index() or 0]
    elif input_of(node, 1) is None and isinstance(whole, int) and whole % count == 0:
        part = whole // count
    return (*shape[:axis], part, *shape[axis + 1 :])


def _vector(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    return (f"{own_name(output)}[0]",)


def _matrix(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    return tuple(_unknown(output, 2))


def _reduced(known: SizeTable, node: ir.Node, output: ir.Value) -> Sizes | None:
    shape, axes = known.shape(input_of(node, 0)), known.integer(input_of(node, 1))
    before_18 = node.attributes.get("axes")
    if before_18 is not None:
        axes = tuple(before_18.as_ints())
    if shape is None or axes is None or not number(node, "keepdims", 1):
        return None
    gone = {int(axis) % len(shape) for axis in axes}
    return tuple(1 if axis in gone else size for axis, size in enumerate(shape))


_Rule = Callable[[SizeTable, ir.Node, ir.Value], Sizes | None]
SHAPE_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    "ConstantOfShape": _filled,
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _matrix,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _vector,
    "ReduceMean": _reduced,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
