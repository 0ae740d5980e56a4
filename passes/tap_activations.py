"""Add the calibration taps to a clone of the model.

    x (input of linears)  ->  Reshape [-1, K] (-> Cast float)  ->  ReduceMin    [K]
                                                               ->  ReduceMax    [K]
                                                               ->  ReduceSum    scalar

The reductions run inside the graph, so no activation ever leaves it. Minimum and maximum give each
channel's absmax and the tensor's range exactly. The sum is only there to notice NaN and infinity:
max and min may skip a NaN, a sum cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from fptq_onnx.graph.linears import Linear

_AXES_BECAME_AN_INPUT = 18  # opset in which ReduceMin and ReduceMax changed


@dataclass(frozen=True)
class Tap:
    """The three outputs that observe one activation."""

    activation: str
    low: str
    high: str
    total: str


def tap_activations(
    model: ir.Model, linears: Sequence[Linear], keep_outputs: Iterable[str]
) -> tuple[Tap, ...]:
    """Tap every distinct input of `linears`, in place; drop what nobody needs any more.

    Args:
        model: a clone made for calibration; it is changed.
        linears: the linears of that same clone.
        keep_outputs: names of model outputs to keep (the KV cache); all others are removed, with
            the nodes only they needed, such as the head's product.

    Returns:
        One Tap per distinct activation, in graph order.
    """
    graph = model.graph
    kept = set(keep_outputs)
    for output in [output for output in graph.outputs if output.name not in kept]:
        graph.outputs.remove(output)
    opset = graph.opset_imports.get("", 0)
    axes = ir.Value(name="fptq_tap_axes", const_value=ir.tensor(np.array([0], np.int64)))
    axes.const_value.name = axes.name  # type: ignore[union-attr]
    axes.shape, axes.dtype = ir.Shape([1]), ir.DataType.INT64
    if opset >= _AXES_BECAME_AN_INPUT:
        graph.register_initializer(axes)
    taps: list[Tap] = []
    seen: set[int] = set()
    for linear in linears:
        if id(linear.x) not in seen:
            seen.add(id(linear.x))
            taps.append(_tap(graph, linear, len(taps), axes, opset))
    common_passes.RemoveUnusedNodesPass()(model)
    return tuple(taps)


def _tap(graph: ir.Graph, linear: Linear, index: int, axes: ir.Value, opset: int) -> Tap:
    prefix = f"fptq_tap_{index}"
    shape = ir.Value(name=f"{prefix}_shape")
    shape.const_value = ir.tensor(np.array([-1, linear.k], np.int64), name=shape.name)
    shape.shape, shape.dtype = ir.Shape([2]), ir.DataType.INT64
    graph.register_initializer(shape)
    nodes = [ir.node("Reshape", [linear.x, shape], name=f"{prefix}_rows")]
    if linear.weight.dtype != ir.DataType.FLOAT:
        to = {"to": ir.DataType.FLOAT}
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], to, name=f"{prefix}_float"))
    rows = nodes[-1].outputs[0]
    outputs = {kind: ir.Value(name=f"{prefix}_{kind}") for kind in ("low", "high", "total")}
    for kind, op in (("low", "ReduceMin"), ("high", "ReduceMax")):
        as_input = opset >= _AXES_BECAME_AN_INPUT
        nodes.append(
            ir.node(
                op,
                [rows, axes] if as_input else [rows],
                {"keepdims": 0} if as_input else {"keepdims": 0, "axes": [0]},
                outputs=[outputs[kind]],
                name=f"{prefix}_{kind}",
            )
        )
    nodes.append(
        ir.node("ReduceSum", [rows], {"keepdims": 0}, outputs=[outputs["total"]], name=prefix)
    )
    for kind, value in outputs.items():
        value.dtype = ir.DataType.FLOAT
        value.shape = ir.Shape([]) if kind == "total" else ir.Shape([linear.k])
    graph.extend(nodes)
    graph.outputs.extend(outputs.values())
    return Tap(
        activation=linear.x.name or "",
        low=outputs["low"].name or "",
        high=outputs["high"].name or "",
        total=outputs["total"].name or "",
    )
