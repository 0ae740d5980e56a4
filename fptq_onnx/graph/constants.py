"""Values that are known before the model runs, whatever the exporter wrapped them in.

A weight is rarely a bare initializer: it sits behind Transpose (torch keeps [N, K]), Cast (fp16
storage), Identity, Constant nodes, `1 + w` (gemma's gains), or is a part of a larger one (Split,
Slice, Reshape, Gather: exporters fold only small constants). `constant_of` looks through these
without reading any data; the array is made only when `load` is called, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.constant_folding import in_float32, new_shape, pick, power, root_of_squares
from fptq_onnx.graph.op_domains import domain_of

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Constant:
    """A constant tensor that has not been read yet.

    shape: its dimensions.
    dtype: element type as the graph sees it (after any Cast).
    sources: the initializers (or Constant nodes' outputs) it is computed from.
    load: makes the array; a view of the mapped file where no arithmetic is needed.
    """

    shape: tuple[int, ...]
    dtype: ir.DataType
    sources: tuple[ir.Value, ...]
    load: Callable[[], Array]

    @property
    def name(self) -> str:
        """Name of the first initializer behind the constant."""
        return self.sources[0].name or "unnamed"


def constant_of(value: ir.Value | None) -> Constant | None:
    """The constant behind a value, or None when it depends on an input or an op not listed here.

    Initializers that are also graph inputs may be overridden by the caller and are not constant.
    """
    return _behind(value, {})


def _behind(value: ir.Value | None, known: dict[int, Constant | None]) -> Constant | None:
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        tensor = value.const_value
        return None if tensor is None else _of_tensor(tensor, value)
    node = value.producer()
    if node is None or domain_of(node) != "":
        return None
    if node.op_type == "Constant":
        return _of_constant(node, value)
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    if id(value) in known:  # a value that many paths lead to is followed once
        return known[id(value)]
    known[id(value)] = None
    operands: list[Constant] = []
    for operand in node.inputs:
        constant = _behind(operand, known)
        if constant is None:
            return None
        operands.append(constant)
    known[id(value)] = rule(node, operands, value.index() or 0) if operands else None
    return known[id(value)]


def scalar_ints(value: ir.Value | None) -> list[int] | None:
    """A small integer constant (axes, shape) as a list, or None."""
    constant = constant_of(value)
    if constant is None or int(np.prod(constant.shape)) > 16:
        return None
    return [int(item) for item in np.atleast_1d(constant.load())]


def _of_tensor(tensor: ir.TensorProtocol, value: ir.Value) -> Constant | None:
    if tensor.dtype == ir.DataType.STRING:
        return None
    return Constant(tuple(tensor.shape.numpy()), tensor.dtype, (value,), tensor.numpy)


def _of_constant(node: ir.Node, value: ir.Value) -> Constant | None:
    """A Constant node; torch writes small integers as attributes of their own."""
    attribute = node.attributes.get("value")
    if attribute is not None:
        return _of_tensor(attribute.as_tensor(), value)
    for name, dtype in _VALUE_ATTRIBUTES.items():
        if (attribute := node.attributes.get(name)) is not None:
            return _of_tensor(ir.Tensor(np.array(attribute.value, dtype), name=value.name), value)
    return None


def _identity(node: ir.Node, operands: list[Constant], index: int) -> Constant:
    return operands[0]


def _cast(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
    (operand,) = operands
    target = ir.DataType(node.attributes["to"].as_int())
    if target not in _CASTABLE:
        return None
    return Constant(
        operand.shape,
        target,
        operand.sources,
        lambda: operand.load().astype(target.numpy(), copy=False),
    )


def _transpose(node: ir.Node, operands: list[Constant], index: int) -> Constant:
    (operand,) = operands
    attribute = node.attributes.get("perm")
    rank = len(operand.shape)
    perm = tuple(attribute.as_ints()) if attribute is not None else tuple(range(rank))[::-1]
    shape = tuple(operand.shape[axis] for axis in perm)
    return Constant(
        shape, operand.dtype, operand.sources, lambda: np.transpose(operand.load(), perm)
    )


def _arithmetic(op: Callable[[Array, Array], Array]) -> _Rule:
    def rule(node: ir.Node, operands: list[Constant], index: int) -> Constant:
        left, right = operands
        shape = np.broadcast_shapes(left.shape, right.shape)
        sources = tuple(dict.fromkeys(left.sources + right.sources))
        return Constant(shape, left.dtype, sources, lambda: op(left.load(), right.load()))

    return rule


def _unary(op: Callable[[Array], Array]) -> _Rule:
    def rule(node: ir.Node, operands: list[Constant], index: int) -> Constant:
        (operand,) = operands
        return replace(operand, load=lambda: in_float32(op, operand.load()))

    return rule


def _matmul(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
    """A product of two matrices: a low-rank addition to a weight."""
    left, right = operands
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        return None
    sources = tuple(dict.fromkeys(left.sources + right.sources))
    shape = (left.shape[0], right.shape[1])
    load = lambda: in_float32(np.matmul, left.load(), right.load())  # noqa: E731
    return Constant(shape, left.dtype, sources, load)


def _reduce(op: Callable[..., Array]) -> _Rule:
    """Sums along axes, which stay with length 1: the norm of each row of a weight."""

    def rule(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
        source, rank = operands[0], len(operands[0].shape)
        given = node.attributes.get("axes")
        found = operands[1].load() if operands[1:] else given.as_ints() if given else range(rank)
        if len(found) == 0 or not _attribute(node, "keepdims", 1):
            return None
        axes = tuple(int(axis) % rank for axis in found)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(source.shape))
        load = lambda: in_float32(lambda a: op(a, axis=axes, keepdims=True), source.load())  # noqa: E731
        return replace(source, shape=shape, load=load)

    return rule


def _reshaped(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the same elements in another shape."""
    source = operands[0]
    given = [int(item) for item in np.atleast_1d(operands[1].load())] if operands[1:] else None
    shape = new_shape(node, source.shape, given)
    if shape is None or int(np.prod(shape)) != int(np.prod(source.shape)):
        return None
    return replace(source, shape=shape, load=lambda: source.load().reshape(shape))


def _split(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
    source = operands[0]
    axis = _attribute(node, "axis", 0) % len(source.shape)
    if operands[1:]:
        sizes = [int(item) for item in operands[1].load()]
    else:
        each = -(-source.shape[axis] // len(node.outputs))
        sizes = [each] * (len(node.outputs) - 1)
        sizes.append(source.shape[axis] - sum(sizes))
    start = sum(sizes[:index])
    return _part(source, {axis: slice(start, start + sizes[index])})


def _slice(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
    source = operands[0]
    if len(operands) < 3:
        return None
    starts, ends, *more = ([int(item) for item in operand.load()] for operand in operands[1:])
    axes = more[0] if more else range(len(starts))
    steps = more[1] if more[1:] else [1] * len(starts)
    if any(step < 1 for step in steps):
        return None
    cut = zip(axes, starts, ends, steps, strict=True)
    return _part(source, {axis % len(source.shape): slice(a, b, step) for axis, a, b, step in cut})


def _gather(node: ir.Node, operands: list[Constant], index: int) -> Constant:
    """What constant numbers pick: one expert's matrix of all experts'."""
    source, picks = operands
    axis = _attribute(node, "axis", 0) % len(source.shape)
    shape = source.shape[:axis] + picks.shape + source.shape[axis + 1 :]
    load = lambda: pick(source.load(), picks.load(), axis)  # noqa: E731
    return replace(source, shape=shape, load=load)


def _part(source: Constant, cut: dict[int, slice]) -> Constant:
    picks = tuple(cut.get(axis, slice(None)) for axis in range(len(source.shape)))
    sizes = zip(picks, source.shape, strict=True)
    shape = tuple(len(range(*pick.indices(size))) for pick, size in sizes)
    return replace(source, shape=shape, load=lambda: source.load()[picks])


def _concat(node: ir.Node, operands: list[Constant], index: int) -> Constant | None:
    first = operands[0]
    axis = _attribute(node, "axis", 0) % max(1, len(first.shape))
    shape = list(first.shape)
    if not shape or any(len(operand.shape) != len(shape) for operand in operands):
        return None
    shape[axis] = sum(operand.shape[axis] for operand in operands)
    sources = tuple(dict.fromkeys(s for operand in operands for s in operand.sources))
    load = lambda: np.concatenate([operand.load() for operand in operands], axis)  # noqa: E731
    return Constant(tuple(shape), first.dtype, sources, load)


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


_VALUE_ATTRIBUTES = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}
_Rule = Callable[[ir.Node, list[Constant], int], "Constant | None"]
_CASTABLE = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.INT32,
    ir.DataType.INT64,
}
_RULES: dict[str, _Rule] = {
    "Identity": _identity,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshaped,
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
    "Pow": _arithmetic(power),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Reciprocal": _unary(np.reciprocal),
    "ReduceSum": _reduce(np.sum),
    "ReduceL2": _reduce(root_of_squares),
    "MatMul": _matmul,
}
