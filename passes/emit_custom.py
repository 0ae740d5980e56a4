"""Target `custom`: one fptq::MatMulW4A8 node per linear, weights in the kernel's panel layout.

MatMul(x, W) (+ Add bias)  ->  fptq::MatMulW4A8(x, panels, scales, zero_points?, bias?)

Scales are written as float16 where float16 holds all of a linear's exactly.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear, find_linears
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN
from fptq_onnx.numerics.group_weights import group_count
from fptq_onnx.numerics.panels import (
    LAYOUT_VERSION,
    PANEL_COLUMNS,
    line_bytes,
    pack_codes,
    pack_group_values,
    panel_count,
    step_count,
)
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes._edit import (
    current_input,
    lazy_initializer,
    replace_linear,
    weight_initializer,
)
from fptq_onnx.scheme.plan import FLOAT, PER_TOKEN, WEIGHT_ONLY, LinearPlan, Plan
from fptq_onnx.scheme.weight_store import WeightStore

OP_TYPES = {4: "MatMulW4A8", 8: "MatMulW8A8"}  # by bits of a weight
DOMAIN_VERSION = 1


def emit_custom(model: ir.Model, plan: Plan, store: WeightStore) -> PassResult:
    """Replace every quantized linear by our op, in place.

    Args:
        model: the equalized model.
        plan: schemes and static scales.
        store: the quantized weights by linear name; read again when the model is written.

    Raises:
        FptqError: a linear is weight-only.
    """
    linears = find_linears(model).by_name()
    quantized = [entry for entry in plan.linears if entry.scheme != FLOAT]
    for entry in quantized:
        if entry.scheme == WEIGHT_ONLY:
            raise FptqError(
                f"our ops multiply int8 activations, and the plan leaves those of {entry.name} in "
                f"float: write --target matmulnbits"
            )
        _emit(model.graph, linears[entry.name], entry, store)
    model.graph.opset_imports[FPTQ_DOMAIN] = DOMAIN_VERSION
    common_passes.RemoveUnusedNodesPass()(model)
    return PassResult(len(quantized))


def _emit(graph: ir.Graph, linear: Linear, entry: LinearPlan, store: WeightStore) -> None:
    name, k, n = store.first(entry.name), linear.k, linear.n
    panels, groups = panel_count(n), group_count(k, entry.block_size)
    packed = weight_initializer(
        graph,
        f"{name}.W{entry.weight_bits}",
        ir.DataType.UINT8,
        (panels, step_count(k), line_bytes(entry.weight_bits)),
        lambda: pack_codes(store.get(name).codes, entry.weight_bits),
    )
    group_shape = (panels, groups, PANEL_COLUMNS)
    scale_type = ir.DataType.FLOAT16 if store.has_half_scales(name) else ir.DataType.FLOAT
    scales = weight_initializer(
        graph,
        f"{name}.scales",
        scale_type,
        group_shape,
        lambda: pack_group_values(store.get(name).scales).astype(scale_type.numpy()),
    )
    inputs: list[ir.Value | None] = [current_input(linear), packed, scales]
    if not entry.symmetric:
        inputs.append(
            weight_initializer(
                graph,
                f"{name}.zero_points",
                ir.DataType.UINT8,
                group_shape,
                lambda: _packed_zero_points(store, name),
            )
        )
    if linear.bias is not None:
        load_bias = linear.bias.load
        bias = lazy_initializer(
            graph,
            f"{entry.name}.bias",
            ir.DataType.FLOAT,
            (n,),
            lambda: load_bias().astype(np.float32),
        )
        if entry.symmetric:
            # Empty rather than left out: ONNX Runtime before 1.23 crashes on a node of a custom
            # domain that skips an input before the last one.
            absent = f"{entry.name}.zero_points"
            inputs.append(
                lazy_initializer(
                    graph, absent, ir.DataType.UINT8, (0,), lambda: np.zeros(0, np.uint8)
                )
            )
        inputs.append(bias)
    attributes: dict[str, int | float | str | list[int]] = {
        "K": k,
        "N": [n],
        "block_size": entry.block_size,
        "layout": LAYOUT_VERSION,
        "activation": "per_token" if entry.scheme == PER_TOKEN else "static",
    }
    if entry.input_scale is not None:
        attributes["a_scale"] = entry.input_scale
    node = ir.node(OP_TYPES[entry.weight_bits], inputs, attributes, domain=FPTQ_DOMAIN)
    replace_linear(linear, node, keep_bias=False)


def _packed_zero_points(store: WeightStore, name: str) -> np.ndarray:
    zero_points = store.get(name).zero_points
    assert zero_points is not None  # the plan says asymmetric, and so was it quantized
    return pack_group_values(zero_points)
