"""Ops other than MatMul and Gemm that multiply by weights: what is left in them, and why."""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.axes import least_rank
from fptq_onnx.graph.constants import constant_of

MICROSOFT = "com.microsoft"
_STANDARD = ("", "ai.onnx")
_RECURRENT = ("LSTM", "GRU", "RNN")
_EXPERTS = ("MoE", "QMoE")


def held_weights(node: ir.Node) -> str:
    """Why weights inside an op stay as they are; '' for an op without weights, or one looked into.

    Convolutions are not mentioned: they are no linears to anybody.
    """
    if node.domain in _STANDARD and node.op_type in _RECURRENT:
        return f"its weights are inside {node.op_type}, which has no 4-bit form"
    if node.domain == MICROSOFT and node.op_type in _EXPERTS:
        return (
            "its weights are all experts' at once, inside one op: mixtures of experts are not done"
        )
    if node.domain == MICROSOFT and node.op_type == "Attention":
        obstacle = attention_obstacle(node)
        return f"its weight is inside the attention op, {obstacle}" if obstacle else ""
    if node.domain in _STANDARD and node.op_type == "Einsum":
        held = [constant_of(value) for value in node.inputs]
        if any(constant is not None and len(constant.shape) > 1 for constant in held):
            return "its weight is inside an Einsum that is no plain product of rows with a matrix"
    return ""


def attention_obstacle(node: ir.Node) -> str:
    """Why the product with the weights cannot be taken out of com.microsoft.Attention; or ''."""
    weight, mask = constant_of(_input(node, 1)), _input(node, 3)
    if weight is None or len(weight.shape) != 2:
        return "which is no constant matrix"
    if any(_input(node, index) is not None for index in (4, 6)) or len(node.outputs) > 1:
        return "which keeps its cache in one tensor"
    if any(_is_set(node, name) for name in ("do_rotary", "past_present_share_buffer")):
        return "which rotates inside or shares its cache"
    if mask is not None and least_rank(mask) not in (2, 3):
        return "whose mask is neither [batch, sequence] nor [batch, sequence, all]"
    return ""


def _is_set(node: ir.Node, name: str) -> bool:
    found = node.attributes.get(name)
    return found is not None and bool(found.as_int())


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
