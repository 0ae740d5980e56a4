"""Values that are known before the model runs, whatever the exporter wrapped them in.

A weight is rarely a bare initializer: it sits behind Transpose (torch keeps [N, K]), Cast (fp16
storage), Identity, Constant nodes, or `1 + w` (gemma's gains). `constant_of` looks through these
without reading any data; the array is made only when `load` is called, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        tensor = value.const_value
        return None if tensor is None else _of_tensor(tensor, value)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        attribute = node.attributes.get("value")
        return None if attribute is None else _of_tensor(attribute.as_tensor(), value)
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    operands = [constant_of(operand) for operand in node.inputs]
    known = [operand for operand in operands if operand is not None]
    return rule(node, known) if known and len(known) == len(operands) else None


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


def _identity(node: ir.Node, operands: list[Constant]) -> Constant:
    return operands[0]


def _cast(node: ir.Node, operands: list[Constant]) -> Constant | None:
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


def _transpose(node: ir.Node, operands: list[Constant]) -> Constant:
    (operand,) = operands
    attribute = node.attributes.get("perm")
    rank = len(operand.shape)
    perm = tuple(attribute.as_ints()) if attribute is not None else tuple(range(rank))[::-1]
    shape = tuple(operand.shape[axis] for axis in perm)
    return Constant(
        shape, operand.dtype, operand.sources, lambda: np.transpose(operand.load(), perm)
    )


def _arithmetic(op: Callable[[Array, Array], Array]) -> _Rule:
    def rule(node: ir.Node, operands: list[Constant]) -> Constant:
        left, right = operands
        shape = np.broadcast_shapes(left.shape, right.shape)
        sources = left.sources + right.sources
        return Constant(shape, left.dtype, sources, lambda: op(left.load(), right.load()))

    return rule


_Rule = Callable[[ir.Node, list[Constant]], "Constant | None"]
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
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
}
