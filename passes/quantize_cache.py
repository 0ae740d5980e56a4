"""Keep the KV cache as int8 codes, a scale for every channel of every head.

    GroupQueryAttention(.., past_key, past_value, ..)           floats in and out
    -> GroupQueryAttention(.., past_key, past_value, .., k_scale, v_scale)   int8 in and out

The operator rounds new keys (after their rotary embedding) and values itself: com.microsoft's by
its own attributes, ours by its two further inputs. Other attention has no such thing: a
QuantizeLinear around a cache would turn all of it into floats again at every step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.declined import Declined
from fptq_onnx.graph.op_domains import FPTQ_DOMAIN, MSFT_DOMAIN
from fptq_onnx.numerics.kv_cache_int8 import cache_scales
from fptq_onnx.passes._contract import PassResult
from fptq_onnx.passes.emit_attention import OP_TYPE

# Where the operators want the two scales.
SCALE_INPUTS = {MSFT_DOMAIN: 12, FPTQ_DOMAIN: 9}
QUANTIZED_ATTRIBUTES: dict[str, int | str] = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}
_PAST, _PRESENT = (3, 4), (1, 2)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def find_caches(model: ir.Model) -> tuple[tuple[ir.Node, ...], tuple[Declined, ...]]:
    """The attention whose cache can be int8, and for each whose cannot, why."""
    found, declined = [], []
    for node in model.graph:
        if node.op_type != OP_TYPE or node.domain not in SCALE_INPUTS:
            continue
        reason = _reason_against(node)
        if reason:
            declined.append(Declined(node.name or "", f"its KV cache keeps its floats: {reason}"))
        else:
            found.append(node)
    return tuple(found), tuple(declined)


def present_names(node: ir.Node) -> tuple[str, str]:
    """Names of the outputs that hold a node's keys and values."""
    key, value = (node.outputs[index].name or "" for index in _PRESENT)
    return key, value


def quantize_cache(model: ir.Model, absmax: Mapping[str, NDArray[np.float32]]) -> PassResult:
    """Change the nodes, and the model's inputs and outputs they keep their caches in, in place.

    Args:
        model: its attentions that `find_caches` gives are changed.
        absmax: by name of a present output of each, max|x| of every channel [kv_heads, size].
    """
    nodes, declined = find_caches(model)
    for node in nodes:
        first = SCALE_INPUTS[node.domain]
        node.resize_inputs(first + 2)
        for index, (kind, present) in enumerate(zip("kv", present_names(node), strict=True)):
            name = f"{node.name}.{kind}_scale"
            scales = ir.tensor(cache_scales(absmax[present].reshape(-1)), name=name)
            value = ir.Value(
                name=name, const_value=scales, type=ir.TensorType(ir.DataType.FLOAT),
                shape=ir.Shape([scales.size]),
            )  # fmt: skip
            model.graph.register_initializer(value)
            node.replace_input_with(first + index, value)
        if node.domain == MSFT_DOMAIN:
            _set_quantized(node)
        kept = [node.inputs[index] for index in _PAST] + [node.outputs[i] for i in _PRESENT]
        for cache in kept:
            assert cache is not None  # _reason_against
            cache.type = ir.TensorType(ir.DataType.INT8)
    return PassResult(len(nodes), declined)


def stock_attention(node: ir.Node) -> None:
    """Make com.microsoft's operator of ours, in place."""
    node.domain = MSFT_DOMAIN
    scales = list(node.inputs[SCALE_INPUTS[FPTQ_DOMAIN] :])
    if not scales:
        return
    first = SCALE_INPUTS[MSFT_DOMAIN]
    node.resize_inputs(SCALE_INPUTS[FPTQ_DOMAIN])
    node.resize_inputs(first + len(scales))
    for index, value in enumerate(scales):
        node.replace_input_with(first + index, value)
    _set_quantized(node)


def _set_quantized(node: ir.Node) -> None:
    for name, setting in QUANTIZED_ATTRIBUTES.items():
        if isinstance(setting, int):
            node.attributes[name] = ir.AttrInt64(name, setting)
        else:
            node.attributes[name] = ir.AttrString(name, setting)


def _reason_against(node: ir.Node) -> str | None:
    if len(node.inputs) <= max(_PAST) or any(node.inputs[index] is None for index in _PAST):
        return "it has no past"
    if len(node.outputs) <= max(_PRESENT):
        return "it has no present"
    if node.attributes.get_int("kv_cache_bit_width", 0) != 0:
        return "it is quantized already"
    if node.domain == MSFT_DOMAIN and any(node.inputs[SCALE_INPUTS[MSFT_DOMAIN] :]):
        return "it has inputs after its sinks"
    for index in _PAST:
        past = node.inputs[index]
        assert past is not None  # see above
        producer = past.producer()
        if producer is not None and producer.op_type == "Cast":
            return "its past goes through a Cast: convert the model from before it became float16"
        if not past.is_graph_input() or len(past.uses()) != 1:
            return "its past is not an input of the model that only it reads"
        if past.dtype not in _FLOATS:
            return f"its past is {past.dtype.name.lower() if past.dtype else 'of unknown type'}"
    for index in _PRESENT:
        present = node.outputs[index]
        if not present.is_graph_output() or present.uses():
            return "its present is not an output of the model that nothing else reads"
    return None
