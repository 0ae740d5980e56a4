"""Ops other than MatMul and Gemm that multiply by weights: what is left in them, and why."""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.attention.length_masks import holds_lengths
from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.op_domains import MSFT_DOMAIN, ONNX_DOMAIN, domain_of
from fptq_onnx.graph.shapes.rank import least_rank

_RECURRENT = ("LSTM", "GRU", "RNN")
_EXPERTS = ("MoE", "QMoE", "MoEPacked")
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# ONNX Runtime's ops that read matrices without multiplying by them (tables of embeddings and of
# angles, masks, biases), and convolutions. Of ops that are not here a matrix is taken for a weight.
_NO_PRODUCT = {
    "GroupQueryAttention", "MultiHeadAttention", "PackedMultiHeadAttention", "PagedAttention",
    "DecoderMaskedMultiHeadAttention", "SparseAttention", "LinearAttention", "GatedDeltaNet",
    "RotaryEmbedding", "MRotaryEmbedding", "GemmaRotaryEmbedding", "RMSNormRotary",
    "EmbedLayerNormalization", "TorchEmbedding", "RelativePositionBias", "GatherND",
    "BiasGelu", "BiasAdd", "BiasSoftmax", "BiasSplitGelu", "BiasDropout", "FastGelu", "Gelu",
    "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNorm",
    "SkipGroupNorm", "GatedRMSNorm", "GatedAdd", "BranchwiseRMSNorm", "SwiGLU", "Pad", "Trilu",
    "ConvTransposeWithDynamicPads",
    "CausalConvWithState", "VarlenCausalConvWithState", "WordConvEmbedding", "ExpandDims",
    "Unique", "ComplexMul", "ComplexMulConj", "BeamSearch", "GreedySearch", "Sampling",
    "WhisperBeamSearch", "GatherBlockQuantized", "Attention", "FusedMatMul", "FusedGemm",
}  # fmt: skip


def held_weights(node: ir.Node) -> str:
    """Why weights inside an op stay as they are; '' for an op without weights, or one looked into.

    Of convolutions those are mentioned that see one position at a time, which others may call
    linears. The rest are no linears to anybody.
    """
    if node.op_type in CONVOLUTIONS and domain_of(node) in (ONNX_DOMAIN, MSFT_DOMAIN):
        return convolution_obstacle(node) or ""
    if domain_of(node) == "" and node.op_type in _RECURRENT:
        return f"its weights are inside {node.op_type}, which has no 4-bit form"
    if node.domain == MSFT_DOMAIN and node.op_type in _EXPERTS:
        return (
            "its weights are all experts' at once, inside one op: mixtures of experts are not done"
        )
    if node.domain == MSFT_DOMAIN and node.op_type == "Attention":
        obstacle = attention_obstacle(node)
        return f"its weight is inside the attention op, {obstacle}" if obstacle else ""
    if domain_of(node) == "":
        if node.op_type == "Einsum" and _holds_matrix(node):
            return "its weight is inside an Einsum that is no plain product of rows with a matrix"
        return ""
    if node.domain == MSFT_DOMAIN:
        if node.op_type not in _NO_PRODUCT and _holds_matrix(node):
            return f"its weight is inside {node.op_type}, which is not taken apart"
        return ""
    if _holds_matrix(node):
        return f"its matrix is read by {node.op_type} of the domain {node.domain}, an unknown op"
    return ""


def _holds_matrix(node: ir.Node) -> bool:
    """Whether an input is a float constant of two dimensions or more that are not 1."""
    held = [constant_of(value) for value in node.inputs]
    return any(
        constant is not None
        and constant.dtype in _FLOATS
        and sum(size != 1 for size in constant.shape) > 1
        for constant in held
    )


def attention_obstacle(node: ir.Node) -> str:
    """Why the product with the weights cannot be taken out of com.microsoft.Attention; or ''."""
    weight, mask = constant_of(_input(node, 1)), _input(node, 3)
    if weight is None or len(weight.shape) != 2:
        return "which is no constant matrix"
    if any(_input(node, index) is not None for index in (4, 6)) or len(node.outputs) > 1:
        return "which keeps its cache in one tensor"
    if any(_is_set(node, name) for name in ("do_rotary", "past_present_share_buffer")):
        return "which rotates inside or shares its cache"
    if mask is None or least_rank(mask) in (2, 3) or holds_lengths(mask, _input(node, 0)):
        return ""
    if least_rank(mask) > 3:
        return "whose mask has four axes, which MultiHeadAttention does not take"
    return "whose mask is not known to be [batch], [batch, sequence] or [batch, sequence, all]"


def convolution_obstacle(node: ir.Node) -> str | None:
    """Why a convolution with a kernel of 1 stays one; '' where it can be a MatMul.

    Returns:
        None where the kernel is larger, where each channel is scaled alone, and where it is not
        known: then it is a linear to nobody.
    """
    value = _input(node, 1)
    weight = constant_of(value)
    shape = weight.shape if weight is not None else tuple(value.shape or ()) if value else ()
    if len(shape) < 3 or any(size != 1 for size in shape[2:]) or shape[1] == 1:
        return None
    if weight is None or weight.dtype not in _FLOATS:
        return "it is a 1x1 convolution whose weight is no float constant"
    if (group := node.attributes.get("group")) is not None and group.as_int() != 1:
        return f"it is a 1x1 convolution in {group.as_int()} groups, with a small matrix for each"
    if _differs(node, "strides", 1) or _differs(node, "pads", 0):
        return "it is a 1x1 convolution that leaves out or adds positions (strides or pads)"
    if len(shape) != 3:
        return "it is a 1x1 convolution of images, not of tokens, and stays a convolution"
    if node.op_type != "Conv":
        return f"it is a 1x1 convolution inside {node.op_type}, which is not taken apart"
    return ""


def _differs(node: ir.Node, name: str, usual: int) -> bool:
    found = node.attributes.get(name)
    return found is not None and any(size != usual for size in found.as_ints())


def _is_set(node: ir.Node, name: str) -> bool:
    found = node.attributes.get(name)
    return found is not None and bool(found.as_int())


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
