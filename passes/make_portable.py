"""From target custom to matmulnbits: the same codes and scales in ops any ONNX Runtime has.

    q, k, v = MatMulW4A8(x, [Wq Wk Wv])        ->  three MatMulNBits(x, W)  (+ Add bias)
    y = MatMulW4A8(x, [Wg Wu], gate=silu)      ->  y = Mul(Mul(g, Sigmoid(g)), u)
    fptq.GroupQueryAttention                   ->  com.microsoft.GroupQueryAttention,
                                                   with its attributes and inputs for an int8 cache

Weights are unpacked and packed again, not rounded. Activations are quantized as MatMulNBits does it
(accuracy_level 4), so the scales of static linears are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN, MSFT_DOMAIN, onnx_opset
from fptq_onnx.numerics.group_weights import GroupWeights
from fptq_onnx.numerics.panels import (
    LAYOUT_VERSION,
    panel_count,
    unpack_codes,
    unpack_group_values,
)
from fptq_onnx.numerics.swiglu import GELU_TANH, SILU
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes._edit import lazy_initializer
from fptq_onnx.passes.emit_attention import OP_TYPE as ATTENTION
from fptq_onnx.passes.emit_custom import OP_TYPES
from fptq_onnx.passes.emit_matmul_nbits import matmul_nbits_node
from fptq_onnx.passes.fuse_shared_inputs import LINEARS
from fptq_onnx.passes.quantize_cache import stock_attention

_BITS = {name: bits for bits, name in OP_TYPES.items()}
_UNDERSTOOD = {"K", "N", "block_size", "layout", "activation", "a_scale", "gate"}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_GELU_OPSET = 20  # ai.onnx has Gelu from here on


def make_portable(model: ir.Model) -> PassResult:
    """Replace every op of ours, in place.

    Args:
        model: of target custom, as written; its weights are read when the result is.

    Raises:
        FptqError: an op, an attribute or a layout that this pass does not know.
    """
    for node in model.graph.all_nodes():
        if node.domain == FPTQ_DOMAIN and node.op_type != ATTENTION:
            _check(node)
    ours = [node for node in model.graph if node.domain == FPTQ_DOMAIN]
    for node in ours:
        if node.op_type == ATTENTION:  # the same operator, see emit_attention
            stock_attention(node)
        else:
            _replace(model, node)
    del model.opset_imports[FPTQ_DOMAIN]
    model.graph.opset_imports[MSFT_DOMAIN] = 1
    common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(len(ours))


def _check(node: ir.Node) -> None:
    strange = set(node.attributes) - _UNDERSTOOD
    known = node.op_type in _BITS and not strange and isinstance(node.graph, ir.Graph)
    gate = node.attributes.get_string("gate", SILU)
    layout = node.attributes.get_int("layout", 0)
    if not known or gate not in (SILU, GELU_TANH) or layout != LAYOUT_VERSION:
        raise FptqError(
            f"the op {node.op_type} ({node.name}) cannot be turned into ops of stock ONNX Runtime: "
            "convert with --target custom,matmulnbits and give the folder that holds both, "
            "or give --no-fallback"
        )


@dataclass(frozen=True)
class _Part:
    """One linear of a node: its columns are whole panels of the packed tensors."""

    name: str
    n: int
    panels: slice
    columns: slice  # of the bias


def _parts(node: ir.Node) -> Iterator[_Part]:
    columns = node.attributes["N"].as_ints()
    names = json.loads(node.metadata_props.get(LINEARS, "[]"))
    if len(names) != len(columns):
        end = "" if len(columns) == 1 else ".{}"
        names = [f"{node.name}{end}".format(index) for index in range(len(columns))]
    panel = column = 0
    for name, n in zip(names, columns, strict=True):
        last = panel + panel_count(n)
        yield _Part(name, n, slice(panel, last), slice(column, column + n))
        panel, column = last, column + n


def _replace(model: ir.Model, node: ir.Node) -> None:
    graph = model.graph
    dtype = _float_type(node)
    gate = node.attributes.get_string("gate")
    outputs, new = [], []
    for part in _parts(node):
        made = _linear(graph, node, part, dtype)
        new += made
        outputs.append(made[-1].outputs[0])
    if gate is not None:
        opset = onnx_opset(model)
        product = _gated(outputs[0], outputs[1], gate, opset)
        for index, made_node in enumerate(product):
            made_node.name = f"{node.name}.gate.{index}"
        new += product
        outputs = [product[-1].outputs[0]]
    shapes = [(old.name, old.shape) for old in node.outputs]
    for value in (value for made_node in new for value in made_node.outputs):
        value.type = ir.TensorType(dtype)
    graph.insert_before(node, new)
    for old, value, (name, shape) in zip(node.outputs, outputs, shapes, strict=True):
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        old.name = None
        value.name, value.shape = name, shape
    graph.remove(node, safe=True)


def _float_type(node: ir.Node) -> ir.DataType:
    """Of the activations; the scales of MatMulNBits must have it too.

    Exporters leave the types of inner values out. Float ops give what they take, but for Cast, so
    the type is looked for upstream.
    """
    if node.outputs[0].dtype in _FLOATS:
        return node.outputs[0].dtype
    waiting = list(node.inputs[:1])
    seen: set[ir.Value] = set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.dtype in _FLOATS:
            return value.dtype
        producer = value.producer()
        if producer is None or value.dtype is not None:
            continue
        if producer.op_type == "Cast":
            found = ir.DataType(producer.attributes.get_int("to", 0))
            if found in _FLOATS:
                return found
        else:  # ops of ours before this one are replaced already, and typed
            waiting += reversed(producer.inputs)
    raise FptqError(
        f"the type of the input of {node.name} is not known: convert with "
        "--target custom,matmulnbits and give the folder that holds both"
    )


def _linear(graph: ir.Graph, node: ir.Node, part: _Part, dtype: ir.DataType) -> list[ir.Node]:
    """MatMulNBits, and an Add where the linear has a bias."""
    x = node.inputs[0]
    tensors = [_constant(node, index) for index in range(5)]
    packed, scales, zero_points, bias = tensors[1:]
    assert x is not None and packed is not None and scales is not None  # what the op needs to load
    k, block_size = node.attributes["K"].as_int(), node.attributes["block_size"].as_int()
    bits = _BITS[node.op_type]

    def get() -> GroupWeights:
        return GroupWeights(
            unpack_codes(packed.numpy()[part.panels], k, part.n),
            unpack_group_values(scales.numpy()[part.panels], part.n).astype(np.float32),
            None
            if zero_points is None
            else unpack_group_values(zero_points.numpy()[part.panels], part.n).astype(np.uint8),
            block_size,
            bits,
        )

    _forget(graph, part.name, node)
    product = matmul_nbits_node(
        graph, x, part.name, get, k=k, n=part.n, bits=bits, block_size=block_size,
        symmetric=zero_points is None, dtype=dtype,
    )  # fmt: skip
    product.name = part.name
    values = None if bias is None else bias.numpy()[part.columns].astype(dtype.numpy())
    if values is None or not values.any():  # the op fills in zeros for linears without a bias
        return [product]
    product.outputs[0].name = f"{part.name}.product"
    kept = lazy_initializer(graph, f"{part.name}.bias", dtype, (part.n,), lambda: values)
    return [product, ir.node("Add", [product.outputs[0], kept], name=f"{part.name}.add")]


def _forget(graph: ir.Graph, name: str, node: ir.Node) -> None:
    """Give the new tensors the names of the old ones, which only `node` reads."""
    for value in node.inputs[1:]:
        if value is not None and value.name is not None and value.name.startswith(f"{name}."):
            if graph.initializers.pop(value.name, None) is not None:
                value.name = f"{value.name}.packed"


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None or value.const_value.size == 0:
        return None
    return value.const_value


def _gated(gate: ir.Value, up: ir.Value, function: str, opset: int) -> list[ir.Node]:
    if function == SILU:
        inner = ir.node("Sigmoid", [gate])
        nodes = [inner, ir.node("Mul", [gate, inner.outputs[0]])]
    elif opset >= _GELU_OPSET:
        nodes = [ir.node("Gelu", [gate], {"approximate": "tanh"})]
    else:
        nodes = [ir.node("FastGelu", [gate], domain=MSFT_DOMAIN)]
    return [*nodes, ir.node("Mul", [nodes[-1].outputs[0], up])]
