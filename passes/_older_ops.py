"""Ops whose spelling or meaning changed between opsets 7 and 17, each brought to the newer one.

An adapter gets a node as opset `changed - 1` defines it and leaves one, or several, as `changed`
does. What is not listed here means in opset 17 what it did: ONNX only added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.constants import constant_of
from fptq_onnx.passes._replace import follow_with
from fptq_onnx.passes._scan_of_batches import scan_of_batches

LAST_AXIS = -1


class Rewriter:
    """One graph or function at work: names that are free, and ranks as far as they are known."""

    def __init__(self, graph: ir.Graph | ir.Function, ranks: dict[str, int], taken: set[str]):
        """Ranks are by value name; `taken` grows with every name given."""
        self.graph, self.ranks, self._taken = graph, ranks, taken

    def name(self, stem: str) -> str:
        """A value name nobody has."""
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def constant(self, node: ir.Node, what: str, array: NDArray[Any]) -> ir.Value:
        """A constant input of a node, called after its output."""
        name = self.name(f"{node.outputs[0].name}_{what}")
        tensor = ir.Tensor(array, name=name)
        if isinstance(self.graph, ir.Graph):
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            self.graph.register_initializer(value)
            return value
        made = ir.node("Constant", [], {"value": tensor})  # functions have no initializers
        made.outputs[0].name = name
        self.graph.insert_before(node, made)
        return made.outputs[0]

    def before(self, node: ir.Node, new: ir.Node, what: str) -> ir.Value:
        """Put a node before another; its output."""
        new.outputs[0].name = self.name(f"{node.outputs[0].name}_{what}")
        new.name = new.outputs[0].name
        self.graph.insert_before(node, new)
        return new.outputs[0]


def _pop(node: ir.Node, name: str) -> Any:
    """Take an attribute away; its value, None where it is absent."""
    attribute = node.attributes.pop(name, None)
    if attribute is None:
        return None
    if attribute.is_ref():
        raise FptqError(f"{_called(node)} takes its {name} from the caller of a function")
    return attribute.value


def _called(node: ir.Node) -> str:
    return f"node {node.name or node.outputs[0].name!r} ({node.op_type})"


def _to_input(node: ir.Node, rewriter: Rewriter, attribute: str, index: int) -> None:
    value = _pop(node, attribute)
    if value is not None:
        array = np.atleast_1d(np.asarray(value, np.int64))
        _set_input(node, index, rewriter.constant(node, attribute, array))


def _set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _input_axes(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 13: Squeeze, Unsqueeze and ReduceSum read their axes."""
    _to_input(node, rewriter, "axes", 1)


def _split(node: ir.Node, rewriter: Rewriter) -> None:
    _to_input(node, rewriter, "split", 1)


def _top_k(node: ir.Node, rewriter: Rewriter) -> None:
    _to_input(node, rewriter, "k", 1)


def _slice(node: ir.Node, rewriter: Rewriter) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        _to_input(node, rewriter, name, index)


def _limits(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 11: Clip reads its limits, of the type of what it clips."""
    for index, name in ((1, "min"), (2, "max")):
        limit = _pop(node, name)
        if limit is not None:
            _set_input(node, index, _like_input(node, rewriter, name, limit))


def _pad(node: ir.Node, rewriter: Rewriter) -> None:
    _to_input(node, rewriter, "pads", 1)
    value = _pop(node, "value")
    if value:
        _set_input(node, 2, _like_input(node, rewriter, "value", value))


def _like_input(node: ir.Node, rewriter: Rewriter, what: str, number: float) -> ir.Value:
    """A scalar of the type of the node's first input, also where no type was written down."""
    x = node.inputs[0]
    assert x is not None  # the op requires it
    if x.dtype is not None:
        return rewriter.constant(node, what, np.array(number, x.dtype.numpy()))
    scalar = rewriter.constant(node, what, np.array(number, np.float32))
    return rewriter.before(node, ir.node("CastLike", [scalar, x]), f"{what}_like")


def _softmax(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 13: along one axis. Before, along all axes from `axis` on, taken as one."""
    axis = _pop(node, "axis")
    axis = 1 if axis is None else axis
    x = node.inputs[0]
    assert x is not None  # the op requires it
    rank = rewriter.ranks.get(x.name or "")
    if rank is not None and axis >= 0:
        axis -= rank
    node.attributes["axis"] = ir.AttrInt64("axis", LAST_AXIS)
    if axis == LAST_AXIS:
        return
    shape = rewriter.before(node, ir.node("Shape", [x]), "shape")
    flat = rewriter.before(node, ir.node("Flatten", [x], {"axis": axis}), "flat")
    node.replace_input_with(0, flat)
    made = node.outputs[0]
    back = ir.node("Reshape", [made, shape])
    follow_with(rewriter.graph, made, back)
    back.name = rewriter.name(f"{node.name}_Reshape")


def _dropout(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 12: the ratio is an input, which only training reads."""
    _pop(node, "ratio")


def _mask(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 10: Dropout's mask is of type bool."""
    _without_extra_outputs(node, 1)


def _batch_norm(node: ir.Node, rewriter: Rewriter) -> None:
    if _pop(node, "spatial") == 0:
        raise FptqError(f"{_called(node)} has statistics for every position (spatial = 0)")
    _without_extra_outputs(node, 1)


def _without_extra_outputs(node: ir.Node, count: int) -> None:
    """Drop outputs that nobody reads."""
    for value in node.outputs[count:]:
        if value.uses() or value.is_graph_output():
            raise FptqError(f"{_called(node)} has an output that changed its meaning: {value.name}")
    node.resize_outputs(count)


def _upsample_scales(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 9: the scales are an input."""
    scales = _pop(node, "scales")
    if scales is not None:
        _set_input(node, 1, rewriter.constant(node, "scales", np.asarray(scales, np.float32)))


def _upsample(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 10: it is called Resize."""
    node.op_type = "Resize"


def _resize(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 11: how positions are mapped is an attribute; ONNX Runtime's Resize-10 did it so."""
    scales = node.inputs[1]
    constant = constant_of(scales)
    shrinks = constant is not None and bool(np.all(np.less_equal(constant.load(), 1)))
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")
    _set_input(node, 1, None)
    _set_input(node, 2, scales)


def _scatter(node: ir.Node, rewriter: Rewriter) -> None:
    node.op_type = "ScatterElements"


def _roi_align(node: ir.Node, rewriter: Rewriter) -> None:
    """Opset 16: the default of how positions are mapped is another."""
    name = "coordinate_transformation_mode"
    node.attributes.setdefault(name, ir.AttrString(name, "output_half_pixel"))


def _scan(node: ir.Node, rewriter: Rewriter) -> None:
    if node.inputs[0] is not None:
        raise FptqError(f"{_called(node)} has lengths of sequences")
    scan_of_batches(node, rewriter.name)


Adapter = Callable[[ir.Node, Rewriter], None]
# By the opset that changed them, the ops of the default domain and what brings a node there.
ADAPTERS: dict[int, dict[str, Adapter]] = {
    9: {"Scan": _scan, "Upsample": _upsample_scales, "BatchNormalization": _batch_norm},
    10: {"Slice": _slice, "TopK": _top_k, "Upsample": _upsample, "Dropout": _mask},
    11: {"Clip": _limits, "Pad": _pad, "Resize": _resize, "Scatter": _scatter},
    12: {"Dropout": _dropout},
    13: {
        "Softmax": _softmax, "LogSoftmax": _softmax, "Hardmax": _softmax, "Squeeze": _input_axes,
        "Unsqueeze": _input_axes, "ReduceSum": _input_axes, "Split": _split,
    },
    14: {"BatchNormalization": _batch_norm},
    16: {"RoiAlign": _roi_align},
}  # fmt: skip
