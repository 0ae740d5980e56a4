"""Bring a graph to a newer ONNX opset, through onnx's own version converter.

The converter works on a copy whose weights were taken out, so its size does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.defs
import onnx.version_converter
import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.passes._contract import PassResult

# The converter may need to see the value of small constants (axes, shapes).
_LARGEST_VISIBLE = 1024
_FOREIGN = "fptq.foreign"
# From here on GroupNormalization has a scale for each channel, before one for each group; the
# converter lets it pass.
_SCALE_BY_CHANNEL = 21


def raise_opset(model: ir.Model, opset: int) -> PassResult:
    """Make a new model at `opset`; none where the model is there already.

    Args:
        model: not changed.
        opset: the ai.onnx version wanted.

    Raises:
        FptqError: it cannot be done.
    """
    current = model.opset_imports.get("", 0)
    if current >= opset:
        return PassResult()
    hidden = {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _LARGEST_VISIBLE
    }
    refusal = (
        f"cannot bring the model from opset {current} to {opset}, which this target needs: export "
        f"it with opset {opset} or newer, or leave this target out"
    )
    for node in model.graph.all_nodes():
        if node.op_type == "GroupNormalization" and current < _SCALE_BY_CHANNEL <= opset:
            raise FptqError(f"{refusal} ({node.name}: GroupNormalization changed in between)")
    skeleton = model.clone()
    for name in hidden:
        value = skeleton.graph.initializers.pop(name)
        value.const_value = None
        if not value.is_graph_input():
            skeleton.graph.inputs.append(value)
    branches = _hide_in_subgraphs(skeleton)
    for graph in skeleton.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):  # the converter knows no folder
                external = value.const_value
                value.const_value = ir.Tensor(external.numpy(), external.dtype, name=external.name)
    foreign = _move_foreign_ops(skeleton, {"": _FOREIGN})
    try:
        converted = ir.from_proto(
            onnx.version_converter.convert_version(ir.to_proto(skeleton), opset)
        )
    except Exception as error:  # the converter raises bare RuntimeErrors of many texts
        raise FptqError(refusal) from error
    if foreign:
        _move_foreign_ops(converted, {_FOREIGN: ""})
    for value in [value for value in converted.graph.inputs if value.name in hidden]:
        original = hidden[value.name or ""]
        if not original.is_graph_input():
            converted.graph.inputs.remove(value)
        value.const_value = original.const_value
        converted.graph.register_initializer(value)
    _show_in_subgraphs(converted, branches)
    converted.metadata_props.update(model.metadata_props)
    return PassResult(changed=1, model=converted)


def _hide_in_subgraphs(model: ir.Model) -> dict[str, tuple[str, ir.TensorProtocol]]:
    """Replace big weights of subgraphs, which have no inputs to become, by single zeros.

    Returns:
        By the name of what stands in for it, the name of the weight and its tensor.
    """
    hidden: dict[str, tuple[str, ir.TensorProtocol]] = {}
    for graph in [graph for graph in model.graphs() if graph is not model.graph]:
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= _LARGEST_VISIBLE:
                continue
            value.name = f"{_FOREIGN}.{len(hidden)}"  # two branches may call theirs the same
            hidden[value.name] = (name, tensor)
            zero = np.zeros([1] * len(tensor.shape), tensor.dtype.numpy())
            value.const_value = ir.Tensor(zero, tensor.dtype, name=value.name)
    return hidden


def _show_in_subgraphs(
    model: ir.Model, hidden: Mapping[str, tuple[str, ir.TensorProtocol]]
) -> None:
    """Undo `_hide_in_subgraphs`."""
    for graph in [graph for graph in model.graphs() if graph is not model.graph] if hidden else ():
        for standing_in, value in list(graph.initializers.items()):
            if standing_in in hidden:
                name, tensor = hidden[standing_in]
                value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
                value.name = name


def _move_foreign_ops(model: ir.Model, domains: Mapping[str, str]) -> int:
    """Rename the domain of ops that are no ONNX ops though they claim to be; how many were.

    ONNX Runtime keeps SimplifiedLayerNormalization and others in the default domain. The converter
    stops at them there; ops of other domains it passes through.
    """
    moved = 0
    for node in model.graph.all_nodes():
        if node.domain in domains and not onnx.defs.has(node.op_type):
            node.domain = domains[node.domain]
            moved += 1
    model.opset_imports.pop(_FOREIGN, None)
    if moved and _FOREIGN in domains.values():
        model.opset_imports[_FOREIGN] = 1
    return moved
