"""Let our library compute attention, too (target custom).

    com.microsoft.GroupQueryAttention  ->  fptq.GroupQueryAttention

The inputs, outputs and meaning are the same; ours computes softmax on the way, skips the keys that
causality hides, and reads every key once for all heads that share it. What the library does not
know (local windows, soft caps, sinks, biases, quantized caches, float16) stays what it is.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.op_domains import FPTQ_DOMAIN, MSFT_DOMAIN
from fptq_onnx.passes._contract import PassResult, Refusal, rewrite_each

OP_TYPE = "GroupQueryAttention"
VERSION = 1
_INPUTS, _OUTPUTS = 9, 3
_PAST = (3, 4)
_RANKS = (3, 4, 4)  # of what is attended to, and of the new caches
_KEPT = {"num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved"}
# Attributes of the stock operator that change nothing when they have these values.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "local_window_size": (-1,),
    "softcap": (0.0,),
    "smooth_softmax": (-1, 0),
    "qk_output": (0,),
    "k_quant_type": ("NONE",),
    "v_quant_type": ("NONE",),
    "kv_cache_bit_width": (0,),
}


def emit_attention(model: ir.Model) -> PassResult:
    """Change the operators in place.

    Args:
        model: any decoder.
    """
    result = rewrite_each(model.graph, _emit, left="attention is left to ONNX Runtime")
    if result.changed:
        model.graph.opset_imports[FPTQ_DOMAIN] = VERSION
    return result


def _emit(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != (MSFT_DOMAIN, OP_TYPE):
        return False
    reason = _reason_against(node)
    if reason:
        raise Refusal(reason)
    for name in ("do_rotary", "rotary_interleaved"):  # the library wants them written down
        value = node.attributes.get_int(name, 0)
        node.attributes[name] = ir.AttrInt64(name, value)
    for name in set(node.attributes) - _KEPT:
        del node.attributes[name]
    node.domain = FPTQ_DOMAIN
    for output, rank in zip(node.outputs, _RANKS, strict=True):
        if output.shape is None:  # the stock op would say it; Scan needs to know
            output.shape, output.dtype = ir.Shape([None] * rank), ir.DataType.FLOAT
    return True


def _reason_against(node: ir.Node) -> str | None:
    for name, attribute in node.attributes.items():
        if name not in _KEPT and attribute.value not in _NEUTRAL.get(name, ()):
            return f"the library knows no {name} {attribute.value}"
    if any(value is not None for value in node.inputs[_INPUTS:]):
        return "it has inputs the library does not know (positions, a bias, sinks or scales)"
    if len(node.outputs) != _OUTPUTS:
        return f"it has {len(node.outputs)} outputs, not {_OUTPUTS}"
    if len(node.inputs) < _INPUTS and node.attributes.get_int("do_rotary", 0) != 0:
        return "its rotary tables are missing"
    past = [node.inputs[index] for index in _PAST]
    types = [value.dtype for value in (*past, *node.outputs) if value is not None and value.dtype]
    if not types or set(types) != {ir.DataType.FLOAT}:
        return "the library computes attention in float32, and this is not known to be"
    return None
