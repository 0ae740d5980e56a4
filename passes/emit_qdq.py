"""Target `qdq`: standard QuantizeLinear / DequantizeLinear, for interchange and NPUs.

    x  ->  QuantizeLinear(int8) -> DequantizeLinear  ->  MatMul(., DequantizeLinear(W int4 blocked))

One pair per activation, shared by all linears that read it. A per-token activation has no constant
scale; it is built from standard ops:

    s = Max(ReduceMax(Abs(x), last axis) / 127, tiny)          x' = Round(x / s) * s

ONNX Runtime on CPU runs this correctly but slowly: it never fuses int8 activations with int4
weights. Needs opset 21 (blocked INT4), see raise_opset.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from fptq_onnx.graph.linears import Linear, find_linears
from fptq_onnx.numerics.int4 import PER_CHANNEL, SYMMETRIC_ZERO_POINT, Int4Weights, group_count
from fptq_onnx.passes._replace import constant_initializer, lazy_initializer
from fptq_onnx.plan import FLOAT, PER_TOKEN, LinearPlan, Plan
from fptq_onnx.weight_store import WeightStore

MINIMUM_OPSET = 21
MINIMUM_IR_VERSION = 10


def emit_qdq(model: ir.Model, plan: Plan, store: WeightStore) -> None:
    """Put Q/DQ around every quantized linear, in place; MatMul, Gemm and Add stay.

    Args:
        model: the equalized model, opset at least MINIMUM_OPSET.
        plan: schemes, static scales and groups.
        store: the int4 weights by linear name; read again when the model is written.
    """
    graph = model.graph
    linears = find_linears(model).by_name()
    rounded: dict[tuple[int, float | None], ir.Value] = {}
    for entry in plan.linears:
        if entry.scheme == FLOAT:
            continue
        linear = linears[entry.name]
        key = (id(linear.x), entry.input_scale)
        if key not in rounded:
            rounded[key] = _round_activation(graph, linear, entry)
        weight = _dequantized_weight(graph, linear, entry, store)
        linear.nodes[0].replace_input_with(0, rounded[key])
        linear.nodes[0].replace_input_with(1, weight)
    model.ir_version = max(model.ir_version, MINIMUM_IR_VERSION)
    common_passes.RemoveUnusedNodesPass()(model)


def _round_activation(graph: ir.Graph, linear: Linear, entry: LinearPlan) -> ir.Value:
    """Nodes that round x to int8 and back, placed before the linear; returns the result."""
    x, dtype, prefix = linear.x, linear.weight.dtype, entry.name
    if entry.scheme == PER_TOKEN:
        nodes = _per_token_nodes(graph, x, dtype, prefix)
    else:
        scale_array = np.array(entry.input_scale, dtype.numpy())
        scale = constant_initializer(graph, f"{prefix}.x_scale", scale_array)
        zero = constant_initializer(graph, "fptq_zero_int8", np.array(0, np.int8))
        quantize = ir.node("QuantizeLinear", [x, scale, zero], name=f"{prefix}.x_q")
        quantize.outputs[0].dtype, quantize.outputs[0].shape = ir.DataType.INT8, x.shape
        dequantize = ir.node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{prefix}.x_dq"
        )
        nodes = [quantize, dequantize]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
    nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = dtype, x.shape
    graph.insert_before(linear.nodes[0], nodes)
    return nodes[-1].outputs[0]


def _per_token_nodes(
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
    scale = ir.node("Max", [divided.outputs[0], floor], name=f"{prefix}.x_scale")
    scaled = ir.node("Div", [x, scale.outputs[0]], name=f"{prefix}.x_scaled")
    codes = ir.node("Round", [scaled.outputs[0]], name=f"{prefix}.x_q")
    result = ir.node("Mul", [codes.outputs[0], scale.outputs[0]], name=f"{prefix}.x_dq")
    return [absolute, highest, divided, scale, scaled, codes, result]


def _dequantized_weight(
    graph: ir.Graph, linear: Linear, entry: LinearPlan, store: WeightStore
) -> ir.Value:
    """DequantizeLinear of the int4 weight, in the orientation the node reads."""
    name, dtype = entry.name, linear.weight.dtype
    trans_b = linear.nodes[0].attributes.get("transB")
    transposed = linear.nodes[0].op_type == "Gemm" and trans_b is not None and bool(trans_b.value)
    k, n = linear.k, linear.n
    groups = group_count(k, entry.block_size)
    per_channel = entry.block_size == PER_CHANNEL

    def oriented(shape: tuple[int, int]) -> tuple[int, ...]:
        return shape[::-1] if transposed else shape

    def orient(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(array.T) if transposed else array

    code_type = ir.DataType.INT4 if entry.symmetric else ir.DataType.UINT4
    group_shape = (n,) if per_channel else oriented((groups, n))
    codes = lazy_initializer(
        graph, f"{name}.W4", code_type, oriented((k, n)), lambda: orient(_codes(store.get(name)))
    )
    scales = lazy_initializer(
        graph,
        f"{name}.scales",
        dtype,
        group_shape,
        lambda: orient(store.get(name).scales).astype(dtype.numpy()).reshape(group_shape),
    )
    inputs = [codes, scales]
    if not entry.symmetric:
        inputs.append(
            lazy_initializer(
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
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.W_dq")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}.W_dq_out", dtype, codes.shape
    graph.insert_before(linear.nodes[0], node)
    return output


def _codes(weights: Int4Weights) -> NDArray[np.generic]:
    if weights.zero_points is not None:
        return weights.codes.astype(ml_dtypes.uint4)
    return (weights.codes.astype(np.int8) - SYMMETRIC_ZERO_POINT).astype(ml_dtypes.int4)


def _zero_points(weights: Int4Weights) -> NDArray[np.generic]:
    assert weights.zero_points is not None  # the plan says asymmetric, and so was it quantized
    return weights.zero_points.astype(ml_dtypes.uint4)
