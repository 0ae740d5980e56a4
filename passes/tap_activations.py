"""Add the calibration taps to a clone of the model.

    x (input of linears)  ->  Reshape [-1, K] (-> Cast float)  ->  ReduceMin    [K]
                                                               ->  ReduceMax    [K]
                                                               ->  ReduceSum    scalar
                                                               ->  ReduceMin    [tokens]
                                                               ->  ReduceMax    [tokens]

The reductions run inside the graph, so no activation ever leaves it. Minimum and maximum give each
channel's absmax and the tensor's range exactly, and the size of each token. The sum is only there
to notice NaN and infinity: max and min may skip a NaN, a sum cannot.
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
    """The outputs that observe one activation: of its channels, of all, and of its tokens."""

    activation: str
    low: str
    high: str
    total: str
    bottom: str
    top: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of all outputs."""
        return (self.low, self.high, self.total, self.bottom, self.top)


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
    axes = (_axis(0), _axis(1))
    if opset >= _AXES_BECAME_AN_INPUT:
        for axis in axes:
            graph.register_initializer(axis)
    taps: list[Tap] = []
    seen: set[int] = set()
    for linear in linears:
        if id(linear.x) not in seen:
            seen.add(id(linear.x))
            taps.append(_tap(graph, linear, len(taps), axes, opset))
    common_passes.RemoveUnusedNodesPass()(model)
    return tuple(taps)


def _axis(number: int) -> ir.Value:
    axis = ir.Value(name=f"fptq_tap_axis_{number}", const_value=ir.tensor(np.array([number])))
    axis.const_value.name = axis.name  # type: ignore[union-attr]
    axis.shape, axis.dtype = ir.Shape([1]), ir.DataType.INT64
    return axis


def _tap(
    graph: ir.Graph, linear: Linear, index: int, axes: tuple[ir.Value, ir.Value], opset: int
) -> Tap:
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
    kinds = ("low", "high", "total", "bottom", "top")
    outputs = {kind: ir.Value(name=f"{prefix}_{kind}") for kind in kinds}
    for kind, op, axis in (
        ("low", "ReduceMin", 0),
        ("high", "ReduceMax", 0),
        ("bottom", "ReduceMin", 1),
        ("top", "ReduceMax", 1),
    ):
        as_input = opset >= _AXES_BECAME_AN_INPUT
        nodes.append(
            ir.node(
                op,
                [rows, axes[axis]] if as_input else [rows],
                {"keepdims": 0} if as_input else {"keepdims": 0, "axes": [axis]},
                outputs=[outputs[kind]],
                name=f"{prefix}_{kind}",
            )
        )
    nodes.append(
        ir.node("ReduceSum", [rows], {"keepdims": 0}, outputs=[outputs["total"]], name=prefix)
    )
    for kind, value in outputs.items():
        value.dtype = ir.DataType.FLOAT
        of_tokens = ir.Shape([None] if kind in ("bottom", "top") else [linear.k])
        value.shape = ir.Shape([]) if kind == "total" else of_tokens
    graph.extend(nodes)
    graph.outputs.extend(outputs.values())
    return Tap(
        activation=linear.x.name or "",
        low=outputs["low"].name or "",
        high=outputs["high"].name or "",
        total=outputs["total"].name or "",
        bottom=outputs["bottom"].name or "",
        top=outputs["top"].name or "",
    )
