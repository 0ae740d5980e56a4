"""How many axes each value has, by onnx's shape inference on the model without its weights."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

# Reshape and others look at the values of constants no larger.
_LARGEST_VISIBLE = 1024
# ONNX Runtime's own ops whose first output has the axes of their first input.
_SAME_RANK = {
    "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "Gelu",
    "SkipSimplifiedLayerNormalization", "FastGelu", "BiasGelu", "QuickGelu", "Attention",
    "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding", "BiasSoftmax", "FusedMatMul",
}  # fmt: skip


def known_ranks(model: ir.Model) -> dict[str, int]:
    """Ranks by value name, subgraphs included, as far as they can be told.

    Args:
        model: not changed.
    """
    skeleton = model.clone()
    for number, graph in enumerate(list(skeleton.graphs())):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= _LARGEST_VISIBLE:
                if isinstance(tensor, ir.ExternalTensor):  # the inference knows no folder
                    value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
                continue
            del graph.initializers[value.name or ""]
            value.const_value = None
            if not value.is_graph_input():
                if graph is not skeleton.graph:  # two branches may call theirs the same
                    value.name = f"{value.name}_{number}"
                skeleton.graph.inputs.append(value)
    for node in skeleton.graph.all_nodes():
        foreign = node.domain != "" or not onnx.defs.has(node.op_type) or (
            node.op_type == "LayerNormalization"
        )  # fmt: skip
        if foreign and node.op_type in _SAME_RANK and node.inputs[0] is not None:
            node.domain, node.op_type = "", "Identity"
            node.attributes.clear()
            node.resize_inputs(1)
            for extra in node.outputs[1:]:
                extra.shape = None
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(skeleton), data_prop=True)
    except Exception:  # it raises its own types and bare RuntimeErrors; then no rank is known
        return {}
    found: dict[str, int] = {}
    _collect(proto.graph, found)
    return found


def _collect(graph: onnx.GraphProto, found: dict[str, int]) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            found[value.name] = len(kind.shape.dim)
    for tensor in graph.initializer:
        found[tensor.name] = len(tensor.dims)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, found)
