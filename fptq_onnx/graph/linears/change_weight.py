"""Give a node another constant: the weight of a linear, or what a norm multiplies by.

The new array is made of the old one each time it is read, so no second copy of a model exists.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.constants import Array, Constant
from fptq_onnx.graph.linears.linears import Linear

_SUFFIX = "_equalized"


def change_constant(
    node: ir.Node, index: int, constant: Constant, change: Callable[[Array], Array]
) -> None:
    """Let one input of one node read a changed copy of a constant.

    Args:
        node: changed in place; others that read the constant keep it.
        index: of the input.
        constant: what it reads now.
        change: makes the new array of the old one, of the same shape.

    Raises:
        FptqError: the node is inside a function.
    """
    _plug_in(node, index, constant, change, constant.shape)


def change_weight(linear: Linear, change: Callable[[Array], Array]) -> None:
    """Let a linear read a changed copy of its weight.

    Args:
        linear: its node is changed in place.
        change: makes the new weight [K, N] of the old one [K, N], however the node stores it.

    Raises:
        FptqError: the node is inside a function.
    """
    node, weight = linear.nodes[0], linear.weight
    attribute = node.attributes.get("transB")
    if node.op_type == "Gemm" and attribute is not None and bool(attribute.value):
        _plug_in(
            node, 1, weight,
            lambda array: np.ascontiguousarray(change(array).T), weight.shape[::-1],
        )  # fmt: skip
    else:
        _plug_in(node, 1, weight, change, weight.shape)


def replace_weight(linear: Linear, w: ir.TensorProtocol) -> None:
    """Give a linear another weight [K, N], in place."""
    change_weight(linear, lambda array: w.numpy().astype(np.float32))


def _plug_in(
    node: ir.Node,
    index: int,
    constant: Constant,
    change: Callable[[Array], Array],
    shape: tuple[int, ...],
) -> None:
    # The index tells gain from bias where both are the same tensor.
    name = f"{constant.name}{_SUFFIX}_{node.name}_{index}"
    dtype = constant.dtype

    def make() -> ir.TensorProtocol:
        return ir.Tensor(change(constant.load()).astype(dtype.numpy(), copy=False), name=name)

    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise FptqError(f"{node.name} is inside a function, which cannot be changed")
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.const_value = ir.LazyTensor(make, dtype, ir.Shape(shape), name=name)
    graph.register_initializer(value)
    node.replace_input_with(index, value)
