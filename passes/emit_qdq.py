"""Target `qdq`: standard QuantizeLinear / DequantizeLinear, for interchange and NPUs.

    x  ->  QuantizeLinear(int8) -> DequantizeLinear  ->  MatMul(., DequantizeLinear(W int4 blocked))

One pair per activation, shared by all linears that read it; those with 8-bit weights get a pair
each (see _OWN_AXES). A per-token activation has no constant
scale; its scale is computed by standard ops and multiplied in after the product:

    s = Max(ReduceMax(Abs(x), last axis) / 127, tiny)
    MatMul(x, W) (+ b)  ->  MatMul(DequantizeLinear(QuantizeLinear(x / s, 1), 1), W) * s (+ b)

With s before the product instead, ONNX Runtime would take the weight for weight-only int4, fuse it
to MatMulNBits and quantize the activation a second time.

Where all shapes are fixed, ONNX Runtime would make a Gemm of MatMul and bias and move the pair past
the reshape that takes; it then sets output_dtype beside a zero point and refuses its own node
(1.32, onnxruntime issue 25526). A bias of three dimensions is left where it is.

ONNX Runtime on CPU runs this correctly but slowly: it never fuses int8 activations with int4
weights. Needs opset 21 (blocked INT4), see raise_opset.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.graph.shapes.rank import least_rank
from fptq_onnx.numerics.group_weights import PER_CHANNEL, GroupWeights, group_count
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes._edit import (
    constant_initializer,
    current_input,
    lazy_initializer,
    weight_initializer,
)
from fptq_onnx.scheme.plan import FLOAT, PER_TOKEN, WEIGHT_ONLY, LinearPlan, Plan
from fptq_onnx.scheme.weight_store import WeightStore

MINIMUM_OPSET = 21
MINIMUM_IR_VERSION = 10
WEIGHT_SUFFIX = ".W_dq"  # of the node that makes a weight of its codes

# ONNX Runtime fuses 8-bit linears to integer products only where nothing else reads their rounded
# input, and it makes one node of equal ones. A scale of the whole tensor has no axis, so any one
# tells them apart; these suit two dimensions and more. The first reader has the default, 1.
_OWN_AXES = (1, 0, -1, -2)

_CODE_TYPES = {  # by bits and whether symmetric
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


def emit_qdq(model: ir.Model, plan: Plan, store: WeightStore) -> PassResult:
    """Put Q/DQ around every quantized linear, in place; MatMul, Gemm and Add stay.

    Args:
        model: the equalized model, opset at least MINIMUM_OPSET.
        plan: schemes, static scales and groups.
        store: the quantized weights by linear name; read again when the model is written.

    Raises:
        FptqError: the plan has 8-bit weights in blocks.
    """
    graph = model.graph
    linears = find_linears(model).by_name()
    rounded: dict[tuple[int, float | None, int], _Rounded] = {}
    readers: Counter[int] = Counter()
    quantized = [entry for entry in plan.linears if entry.scheme != FLOAT]
    for entry in quantized:
        if entry.weight_bits == 8 and entry.block_size != PER_CHANNEL:
            raise FptqError(
                f"the qdq target has no 8-bit weights in blocks ({entry.name}): give that linear "
                f"block_size -1 in the plan"
            )
        linear = linears[entry.name]
        weight = _dequantized_weight(graph, linear, entry, store)
        linear.nodes[0].replace_input_with(1, weight)
        if entry.scheme == WEIGHT_ONLY:
            continue
        if entry.scheme != PER_TOKEN and len(linear.nodes) == 2 and _may_be_static(graph, linear):
            _keep_bias_apart(graph, linear)
        x = id(current_input(linear))
        reader = readers[x] if entry.weight_bits == 8 else 0
        readers[x] += 1
        key = (x, entry.input_scale, reader)
        if key not in rounded:
            rounded[key] = _round_activation(graph, linear, entry, reader)
        linear.nodes[0].replace_input_with(0, rounded[key].codes)
        token_scale = rounded[key].token_scale
        if token_scale is not None:
            _multiply_after(graph, linear, token_scale)
    model.ir_version = max(model.ir_version, MINIMUM_IR_VERSION)
    common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(len(quantized))


def _may_be_static(graph: ir.Graph, linear: Linear) -> bool:
    """Whether the activation has three dimensions or more, and none of them is a variable."""
    x = current_input(linear)
    shapes = [x.shape] if x.shape is not None else [value.shape for value in graph.inputs]
    return least_rank(x) > 2 and all(shape is not None and shape.is_static() for shape in shapes)


def _keep_bias_apart(graph: ir.Graph, linear: Linear) -> None:
    """Give the bias [N] two more dimensions of one."""
    product, add = linear.nodes[0].outputs[0], linear.nodes[1]
    index = 1 if add.inputs[0] is product else 0
    assert linear.bias is not None  # it is what the second node adds
    bias = linear.bias
    shape = (1, 1, linear.n)
    wide = lazy_initializer(
        graph, f"{linear.name}.bias", bias.dtype, shape, lambda: bias.load().reshape(shape)
    )
    add.replace_input_with(index, wide)


@dataclass(frozen=True)
class _Rounded:
    """An activation as int8 and back; token_scale is still to be multiplied in, if there is one."""

    codes: ir.Value
    token_scale: ir.Value | None


def _round_activation(graph: ir.Graph, linear: Linear, entry: LinearPlan, reader: int) -> _Rounded:
    """Put the nodes that round x to int8 and back before the linear."""
    x, dtype, prefix = current_input(linear), linear.weight.dtype, entry.name
    nodes: list[ir.Node] = []
    token_scale = None
    if entry.scheme == PER_TOKEN:
        nodes = _token_scale_nodes(graph, x, dtype, prefix)
        token_scale = nodes[-1].outputs[0]
        nodes.append(ir.node("Div", [x, token_scale], name=f"{prefix}.x_scaled"))
    source = nodes[-1].outputs[0] if nodes else x
    static = 1.0 if entry.input_scale is None else entry.input_scale
    scale = constant_initializer(graph, f"{prefix}.x_scale", np.array(static, dtype.numpy()))
    zero = constant_initializer(graph, "fptq_zero_int8", np.array(0, np.int8))
    axis = {"axis": _OWN_AXES[reader % len(_OWN_AXES)]} if reader else {}
    quantize = ir.node("QuantizeLinear", [source, scale, zero], axis, name=f"{prefix}.x_q")
    dequantize = ir.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{prefix}.x_dq"
    )
    nodes += [quantize, dequantize]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
    quantize.outputs[0].dtype, quantize.outputs[0].shape = ir.DataType.INT8, x.shape
    dequantize.outputs[0].dtype, dequantize.outputs[0].shape = dtype, x.shape
    graph.insert_before(linear.nodes[0], nodes)
    return _Rounded(dequantize.outputs[0], token_scale)


def _token_scale_nodes(
    graph: ir.Graph, x: ir.Value, dtype: ir.DataType, prefix: str
) -> list[ir.Node]:
    numpy_type = dtype.numpy()
    tiny = np.finfo(np.float16 if dtype == ir.DataType.FLOAT16 else np.float32).tiny
    suffix = dtype.name.lower()
    last = constant_initializer(graph, "fptq_last_axis", np.array([-1], np.int64))
    top = constant_initializer(graph, f"fptq_127_{suffix}", np.array(127, numpy_type))
    floor = constant_initializer(graph, f"fptq_tiny_{suffix}", np.array(tiny, numpy_type))
    absolute = ir.node("Abs", [x], name=f"{prefix}.x_abs")
    highest = ir.node(
        "ReduceMax", [absolute.outputs[0], last], {"keepdims": 1}, name=f"{prefix}.x_max"
    )
    divided = ir.node("Div", [highest.outputs[0], top], name=f"{prefix}.x_max_127")
    scale = ir.node("Max", [divided.outputs[0], floor], name=f"{prefix}.token_scale")
    return [absolute, highest, divided, scale]


def _multiply_after(graph: ir.Graph, linear: Linear, token_scale: ir.Value) -> None:
    """Multiply the product by the tokens' scales; a bias inside Gemm moves behind that."""
    node = linear.nodes[0]
    product = node.outputs[0]
    after = ir.node("Mul", [product, token_scale], name=f"{node.name}.rescale")
    nodes = [after]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2]
        node.resize_inputs(2)
        nodes.append(ir.node("Add", [after.outputs[0], bias], name=f"{node.name}.bias"))
    result = nodes[-1].outputs[0]
    result.name, result.type, result.shape = product.name, product.type, product.shape
    product.replace_all_uses_with(result, replace_graph_outputs=True)
    after.replace_input_with(0, product)
    product.name = f"{node.name}.product"
    if len(nodes) == 2:
        after.outputs[0].name = f"{node.name}.rescaled"
    graph.insert_after(node, nodes)


def _dequantized_weight(
    graph: ir.Graph, linear: Linear, entry: LinearPlan, store: WeightStore
) -> ir.Value:
    """DequantizeLinear of the weight, in the orientation the node reads."""
    name, dtype = store.first(entry.name), linear.weight.dtype
    trans_b = linear.nodes[0].attributes.get("transB")
    transposed = linear.nodes[0].op_type == "Gemm" and trans_b is not None and bool(trans_b.value)
    if transposed and store.is_shared(entry.name):  # others may read it as [K, N]
        linear.nodes[0].attributes["transB"] = ir.AttrInt64("transB", 0)
        transposed = False
    k, n = linear.k, linear.n
    groups = group_count(k, entry.block_size)
    per_channel = entry.block_size == PER_CHANNEL

    def oriented(shape: tuple[int, int]) -> tuple[int, ...]:
        return shape[::-1] if transposed else shape

    def orient(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(array.T) if transposed else array

    code_type = _CODE_TYPES[entry.weight_bits, entry.symmetric]
    group_shape = (n,) if per_channel else oriented((groups, n))
    codes = weight_initializer(
        graph,
        f"{name}.W{entry.weight_bits}",
        code_type,
        oriented((k, n)),
        lambda: orient(_codes(store.get(name))),
    )
    scales = weight_initializer(
        graph,
        f"{name}.scales",
        dtype,
        group_shape,
        lambda: orient(store.get(name).scales).astype(dtype.numpy()).reshape(group_shape),
    )
    inputs = [codes, scales]
    if not entry.symmetric:
        inputs.append(
            weight_initializer(
                graph,
                f"{name}.zero_points",
                code_type,
                group_shape,
                lambda: orient(_zero_points(store.get(name))).reshape(group_shape),
            )
        )
    k_axis = 1 if transposed else 0
    attributes = (
        {"axis": 1 - k_axis} if per_channel else {"axis": k_axis, "block_size": entry.block_size}
    )
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{entry.name}{WEIGHT_SUFFIX}")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{entry.name}{WEIGHT_SUFFIX}_out", dtype, codes.shape
    graph.insert_before(linear.nodes[0], node)
    return output


def _codes(weights: GroupWeights) -> NDArray[np.generic]:
    code_type = _CODE_TYPES[weights.bits, weights.zero_points is None].numpy()
    if weights.zero_points is not None:
        return weights.codes.astype(code_type)
    return (weights.codes.astype(np.int16) - weights.middle).astype(code_type)


def _zero_points(weights: GroupWeights) -> NDArray[np.generic]:
    assert weights.zero_points is not None  # the plan says asymmetric, and so was it quantized
    return weights.zero_points.astype(_CODE_TYPES[weights.bits, False].numpy())
