"""Whether a mask of one axis is the number of tokens in each row of the batch.

com.microsoft's Attention takes other vectors too, with the starts of the tokens behind the ends
([2 * batch], [3 * batch + 2]), which MultiHeadAttention reads otherwise or not at all.
"""

from __future__ import annotations

import onnx_ir as ir

from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.shapes.rank import rank_of

_MASK_INDEX = 1  # of the outputs of EmbedLayerNormalization


def holds_lengths(mask: ir.Value, x: ir.Value | None) -> bool:
    """Whether a mask certainly has shape [batch].

    Args:
        mask: of an attention op.
        x: what the op reads, [batch, tokens, channels].
    """
    node = mask.producer()
    while node is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None:
        mask, node = node.inputs[0], node.inputs[0].producer()
    if node is not None and node.op_type == "EmbedLayerNormalization":
        return mask.index() == _MASK_INDEX
    if node is not None and node.op_type == "ReduceSum":
        return _sums_rows(node)
    return _declared(mask, x)


def _sums_rows(node: ir.Node) -> bool:
    """Whether each row of a matrix becomes one number: a mask [batch, tokens] is summed."""
    keeps, source = node.attributes.get("keepdims"), node.inputs[0]
    axes = scalar_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if keeps is None or keeps.as_int() != 0 or axes not in ([1], [-1]):
        return False
    return source is not None and rank_of(source) == 2


def _declared(mask: ir.Value, x: ir.Value | None) -> bool:
    """Whether its one size is named as the batch is, of x or of an input of the model."""
    if mask.shape is None or len(mask.shape) != 1:
        return False
    graph = mask.graph
    inputs = [value for value in graph.inputs if value is not mask] if graph is not None else []
    shapes = [value.shape for value in (x, *inputs) if value is not None]
    batches = [shape[0] for shape in shapes if shape is not None and len(shape) > 1]
    size = mask.shape[0]
    # A number may be twice another batch's: those of x alone count.
    own = x is not None and x.shape is not None and len(x.shape) == 3 and x.shape[0] == size
    named = not isinstance(size, int) and size.value is not None and size in batches
    return named or (own and isinstance(size, int))
