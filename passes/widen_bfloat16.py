"""Compute in float32 what a graph computes in bfloat16, which ONNX Runtime's CPU kernels do not.

Weights stay bfloat16 in their files, each behind a Cast that widens it: no value changes.
Inputs and outputs of type bfloat16 become float32 as well.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fptq_onnx.passes._contract import PassResult

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
# Attributes that name an element type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def widen_bfloat16(model: ir.Model) -> PassResult:
    """Widen in place, and count the values.

    Args:
        model: nothing happens to one that only stores weights in bfloat16 and casts them itself.
    """
    if not computes_in_bfloat16(model):
        return PassResult()
    widened = 0
    for graph in model.graphs():
        if not isinstance(graph, ir.Graph):
            continue
        for node in graph:
            _widen_attributes(node)
            for value in node.outputs:
                widened += _set_wide(value)
        for value in graph.inputs:
            if not value.is_initializer():
                widened += _set_wide(value)
        for initializer in list(graph.initializers.values()):
            if initializer.const_value is not None and initializer.const_value.dtype == _NARROW:
                _cast_behind(graph, initializer)
                widened += 1
    return PassResult(widened)


def computes_in_bfloat16(model: ir.Model) -> bool:
    """Whether any op but a Cast, Transpose or Identity of weights takes or makes bfloat16."""
    for node in model.graph.all_nodes():
        if node.op_type in ("Cast", "Transpose", "Identity", "Constant"):
            continue
        for value in (*node.inputs, *node.outputs):
            if value is None:
                continue
            tensor = value.const_value
            if (value.dtype if tensor is None else tensor.dtype) == _NARROW:
                return True
    return any(value.dtype == _NARROW for value in (*model.graph.inputs, *model.graph.outputs))


def narrow_interface(model: ir.Model) -> tuple[str, ...]:
    """Names of the inputs and outputs that `widen_bfloat16` makes float32; before it is called."""
    return tuple(
        value.name or ""
        for value in (*model.graph.inputs, *model.graph.outputs)
        if value.dtype == _NARROW and not value.is_initializer()
    )


def _set_wide(value: ir.Value) -> bool:
    narrow = value.dtype == _NARROW
    if narrow:
        value.type = ir.TensorType(_WIDE)
    return narrow


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES:
            if attribute.as_int() == _NARROW.value:
                node.attributes[name] = ir.AttrInt64(name, _WIDE.value)
        elif attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == _NARROW:
                wide = ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
                node.attributes[name] = ir.AttrTensor(name, wide)


def _cast_behind(graph: ir.Graph, initializer: ir.Value) -> None:
    name = f"{initializer.name}_float32"
    cast = ir.node("Cast", [initializer], {"to": _WIDE.value}, name=name)
    wide = cast.outputs[0]
    wide.name, wide.shape, wide.type = name, initializer.shape, ir.TensorType(_WIDE)
    uses = [use for use in initializer.uses() if use.node is not cast]
    first = next(iter(graph), None)
    if first is None:
        return
    graph.insert_before(first, cast)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)
    for index, output in enumerate(graph.outputs):
        if output is initializer:
            graph.outputs[index] = wide
