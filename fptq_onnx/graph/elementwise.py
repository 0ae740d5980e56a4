"""Which function of one value a piece of graph computes, found by trying it out.

Exporters spell an activation function in many ways (gelu has five); what it does to numbers is the
same. A piece is the nodes between a value and what depends on nothing but it and scalar constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.op_domains import MSFT_DOMAIN

Array = NDArray[np.float64]


class NotElementwise(Exception):
    """Why a value is no function of another, for people."""


@dataclass(frozen=True)
class Piece:
    """The nodes of a function of one value, and its values at some points.

    nodes: in the order of the graph's evaluation.
    values: float64, the function at the points asked for.
    """

    nodes: tuple[ir.Node, ...]
    values: Array


def silu(x: Array) -> Array:
    """X * sigmoid(x)."""
    return np.asarray(x / (1 + np.exp(-x)), np.float64)


def gelu_tanh(x: Array) -> Array:
    """GELU by tanh: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float64)


def gelu_erf(x: Array) -> Array:
    """GELU by erf: 0.5 x (1 + erf(x / sqrt(2)))."""
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))), np.float64)


def function_of(value: ir.Value, source: ir.Value, points: Array) -> Piece:
    """Evaluate `value` as a function of `source`.

    Args:
        value: the result.
        source: the only thing that varies.
        points: float64 values to put in for source.

    Raises:
        NotElementwise: value depends on something else, or on an op that is not known here.
    """
    done: dict[int, Array] = {id(source): points}
    nodes: list[ir.Node] = []

    def evaluate(current: ir.Value) -> Array:
        if id(current) in done:
            return done[id(current)]
        constant = _scalar(current)
        if constant is not None:
            return constant
        node = current.producer()
        if node is None:
            raise NotElementwise(f"it depends on {current.name}")
        key = (node.domain, node.op_type)
        if key not in _OPS:
            raise NotElementwise(f"it goes through {node.op_type}")
        inputs = [evaluate(operand) for operand in node.inputs if operand is not None]
        with np.errstate(all="ignore"):
            result = _OPS[key](node, inputs)
        done[id(current)] = result
        nodes.append(node)
        return result

    values = np.broadcast_to(evaluate(value), points.shape)
    return Piece(tuple(nodes), values)


def _scalar(value: ir.Value) -> Array | None:
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value") or producer.attributes.get("value_float")
        if attribute is None:
            return None
        if attribute.type == ir.AttributeType.FLOAT:
            return np.asarray(attribute.as_float(), np.float64)
        tensor = attribute.as_tensor()
    if tensor is None or tensor.size != 1:
        return None
    scalar: Array = tensor.numpy().astype(np.float64).reshape(())
    return scalar


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), np.float64)


def _gelu(node: ir.Node, inputs: Sequence[Array]) -> Array:
    approximate = node.attributes.get("approximate")
    by_tanh = approximate is not None and approximate.as_string() == "tanh"
    return (gelu_tanh if by_tanh else gelu_erf)(inputs[0])


def _swish(node: ir.Node, inputs: Sequence[Array]) -> Array:
    alpha = node.attributes.get("alpha")
    default = 1.702 if node.op_type == "QuickGelu" else 1.0
    slope = default if alpha is None else alpha.as_float()
    return np.asarray(inputs[0] / (1 + np.exp(-slope * inputs[0])), np.float64)


def _fast_gelu(node: ir.Node, inputs: Sequence[Array]) -> Array:
    if len(inputs) > 1:
        raise NotElementwise("it goes through FastGelu with a bias")
    return gelu_tanh(inputs[0])


_OPS: dict[tuple[str, str], Callable[[ir.Node, Sequence[Array]], Array]] = {
    ("", "Add"): lambda _, x: x[0] + x[1],
    ("", "Sub"): lambda _, x: x[0] - x[1],
    ("", "Mul"): lambda _, x: x[0] * x[1],
    ("", "Div"): lambda _, x: x[0] / x[1],
    ("", "Pow"): lambda _, x: np.power(x[0], x[1]),
    ("", "Neg"): lambda _, x: -x[0],
    ("", "Exp"): lambda _, x: np.exp(x[0]),
    ("", "Sqrt"): lambda _, x: np.sqrt(x[0]),
    ("", "Erf"): lambda _, x: _erf(x[0]),
    ("", "Tanh"): lambda _, x: np.tanh(x[0]),
    ("", "Sigmoid"): lambda _, x: 1 / (1 + np.exp(-x[0])),
    ("", "Relu"): lambda _, x: np.maximum(x[0], 0),
    ("", "Identity"): lambda _, x: x[0],
    ("", "Swish"): _swish,
    ("", "Gelu"): _gelu,
    (MSFT_DOMAIN, "Gelu"): lambda _, x: gelu_erf(x[0]),
    (MSFT_DOMAIN, "QuickGelu"): _swish,
    (MSFT_DOMAIN, "FastGelu"): _fast_gelu,
}
