"""Products with constant weights that are no linears: all experts at once, convolutions, ...

    MatMul(x, W [E, K, N])      Einsum(x, W)      MatMul(x, DequantizeLinear(codes))
    Conv, LSTM, MoE, MatMulNBits, products inside the body of a Loop or Scan

They are not quantized, but what they make is as much computed from the model's weights as the
output of a linear is: a router weighs it, for one.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.linears.linears import MATMUL_LIKE
from fptq_onnx.graph.linears.weights_in_other_ops import CONVOLUTIONS, held_weights

_CONVOLUTIONS = (*CONVOLUTIONS, "ConvTranspose", "ConvInteger", "QLinearConv")
_PRODUCTS = (
    *MATMUL_LIKE, *_CONVOLUTIONS, "Einsum", "MatMulInteger", "QLinearMatMul", "LSTM", "GRU", "RNN",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "MoE", "QMoE", "MoEPacked",
)  # fmt: skip
_RANDOM = (
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
    "Multinomial",
)  # fmt: skip


class WeightProducts:
    """The products with weights of a graph and its subgraphs, but for some that are linears.

    Attributes:
        size: number of elements of all constants with two axes or more.

    Args:
        graph: the main graph.
        linears: ids of the nodes that are linears.
    """

    def __init__(self, graph: ir.Graph, linears: Collection[int]) -> None:
        self._is_matrix: dict[int, bool] = {}  # by id of each value that no input has a part in
        self._found: dict[int, ir.Node] = {}
        self.size = 0
        for node in graph.all_nodes():
            read = [value for value in node.inputs if value is not None]
            matrices = [self._fixed(value) for value in read]
            if None not in matrices and node.op_type not in _RANDOM:
                for output in node.outputs:
                    self._is_matrix[id(output)] = any(matrices) or self._enter(output)
            elif id(node) not in linears and self._multiplies(node, read):
                self._found[id(node)] = node

    def __contains__(self, node: ir.Node) -> bool:
        return id(node) in self._found

    def is_convolution(self, node: ir.Node) -> bool:
        """Whether a product is a convolution."""
        return node.op_type in _CONVOLUTIONS

    def holds_experts(self, node: ir.Node, count: int) -> bool:
        """Whether the weights of a product are a stack of so many matrices."""
        return id(node) in self._found and any(
            count in _shape(value)[:-2]
            for value in node.inputs
            if value is not None and self._is_matrix.get(id(value))
        )

    def _fixed(self, value: ir.Value) -> bool | None:
        """Whether a value holds a matrix; None where it is not known before the model runs."""
        if id(value) not in self._is_matrix and value.is_initializer():
            self._is_matrix[id(value)] = self._enter(value)
        return self._is_matrix.get(id(value))

    def _enter(self, value: ir.Value) -> bool:
        shape = _shape(value)
        if sum(size != 1 for size in shape) < 2:
            return False
        self.size += math.prod(shape)
        return True

    def _multiplies(self, node: ir.Node, read: list[ir.Value]) -> bool:
        held = [value for value in read if self._is_matrix.get(id(value))]
        if not held:
            return False
        if node.op_type in _CONVOLUTIONS:
            # One channel at a time is no product of channels.
            return all(len(shape := _shape(value)) < 2 or shape[1] != 1 for value in held)
        if node.op_type in MATMUL_LIKE:
            # Positions times the frequencies of a rotary table are one channel.
            return any(_channels(node, value) != 1 for value in held)
        return node.op_type in _PRODUCTS or bool(held_weights(node))


def _channels(node: ir.Node, value: ir.Value) -> int:
    """The size of the axis of a constant that a MatMul or Gemm sums over; 0 where not known."""
    left = value is node.inputs[0]
    transposed = node.attributes.get("transA" if left else "transB")
    last = left != (transposed is not None and bool(transposed.as_int()))
    shape = _shape(value)
    return 0 if len(shape) < 2 else shape[-1 if last else -2]


def _shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant; () where it is not known."""
    constant = constant_of(value)
    if constant is not None:
        return constant.shape
    sizes = tuple(value.shape or ())
    return tuple(size for size in sizes if isinstance(size, int)) if sizes else ()
