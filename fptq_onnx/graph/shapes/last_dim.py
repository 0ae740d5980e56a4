"""The size of a value's last axis, where exporters left no shapes.

Told by norms before and after (their gain has as many numbers), by weights, and by the shape a
Reshape asks for; a size that is picked from the shape of another value is looked for there.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import constant_of, scalar_ints
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.pad import pads_rows
from fptq_onnx.graph.shapes.rank import is_not_last, rank_of
from fptq_onnx.graph.walk_back import input_of

_MOST_STEPS = 64
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
_ELEMENTWISE = ("Cast", "Identity", "Relu", *_NORMS)


def last_size(value: ir.Value) -> int | None:
    """The size; None where nothing near tells."""
    current: ir.Value | None = value
    for _ in range(_MOST_STEPS):
        if current is None:
            return None
        node = current.producer()
        read_by = _of_norms(current) or _of_products(current)
        if node is not None and node.op_type == "Reshape" and domain_of(node) == "":
            size, current = _asked_for(node)
            size = size or read_by
        else:
            size, current = _declared(current) or read_by, _source(node)
        if size is not None:
            return size
    return None


def _declared(value: ir.Value) -> int | None:
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def _of_norms(value: ir.Value) -> int | None:
    """What norms that make or read a value have gains for."""
    nodes = [use.node for use in value.uses() if use.idx == 0]
    maker = value.producer()
    for node in nodes if maker is None else [maker, *nodes]:
        axis = node.attributes.get("axis")
        if node.op_type not in _NORMS or (axis is not None and axis.as_int() != -1):
            continue
        gain = constant_of(input_of(node, 1))
        if (
            gain is not None and len(gain.shape) == 1 and gain.shape != (1,)
        ):  # one serves any number
            return gain.shape[0]
    return None


def _of_products(value: ir.Value) -> int | None:
    """What a matrix has rows for that a value is multiplied with: a router, a linear."""
    for use in value.uses():
        if use.node.op_type != "MatMul" or domain_of(use.node) != "" or use.idx != 0:
            continue
        weight = constant_of(input_of(use.node, 1))
        if weight is not None and len(weight.shape) == 2:
            return weight.shape[0]
    return None


def _source(node: ir.Node | None) -> ir.Value | None:
    """An input with the same last axis as the node's output."""
    if node is None or domain_of(node) != "" or not node.inputs or node.inputs[0] is None:
        return None
    first = node.inputs[0]
    if node.op_type in _ELEMENTWISE:
        return first
    if node.op_type == "Pad":
        return first if pads_rows(node) else None
    axes = None
    if node.op_type in ("Concat", "Split") and (axis := node.attributes.get("axis")) is not None:
        axes = [axis.as_int()]
    elif node.op_type == "Slice":
        axes = scalar_ints(input_of(node, 3))
    elif node.op_type == "Unsqueeze":
        first, axes = node.outputs[0], scalar_ints(input_of(node, 1))
        return node.inputs[0] if axes and all(is_not_last(axis, first) for axis in axes) else None
    return first if axes and all(is_not_last(axis, first) for axis in axes) else None


def _asked_for(reshape: ir.Node) -> tuple[int | None, ir.Value | None]:
    """The last size a Reshape asks for, or the value whose last size it takes."""
    sizes = reshape.inputs[1]
    made_by = sizes.producer() if sizes is not None else None
    if made_by is not None and made_by.op_type == "Concat":
        sizes = made_by.inputs[-1]
    found = scalar_ints(sizes)
    if found and found[-1] > 0:
        return found[-1], None
    made = _declared(reshape.outputs[0])
    return made, _picked_from(sizes) if found is None and made is None else None


def _picked_from(size: ir.Value | None) -> ir.Value | None:
    """The value whose last size a piece of a shape is: Unsqueeze(Gather(Shape(value), last))."""
    index = None
    for op_type in ("Unsqueeze", "Gather", "Shape"):
        node = size.producer() if size is not None else None
        if node is None or node.op_type != op_type or domain_of(node) != "":
            return None
        if op_type == "Gather":
            index = scalar_ints(input_of(node, 1))
        if op_type == "Shape" and node.attributes:  # a part of the shape
            return None
        size = node.inputs[0]
    if size is None or index is None or len(index) != 1:
        return None
    rank = rank_of(size)
    return size if index[0] == -1 or (rank is not None and index[0] == rank - 1) else None
