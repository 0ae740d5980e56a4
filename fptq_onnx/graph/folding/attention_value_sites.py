"""From the input of o_proj back through attention to v_proj, whose columns can take its scales.

    o_proj(merge heads(probabilities @ v))      channel j of the input is linear in a column of v

A column of v serves a whole group of query heads (grouped-query attention), and v may be some
columns of a wider linear (q, k and v in one). Forms: GroupQueryAttention, MultiHeadAttention,
Attention (opset 23), and MatMul(probabilities, v) with its reshapes and transposes, heads repeated
by Unsqueeze, Expand and Reshape. Between v and its heads anything may stand that moves, picks or
repeats columns (moved_columns.py); the usual spellings are looked for first, which is faster.

The cached values are divided as well: a cache made by the folded model belongs to it. Where a
cache is not simply an input and an output of this model, nothing is folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.attention.value_path import (
    ATTENTION_OPS,
    VALUE,
    AttentionOp,
    core_of,
    merge_channels,
    owns_cache,
    swap_heads,
)  # fmt: skip
from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.folding.column_spans import is_last, picks_others, span_of
from fptq_onnx.graph.folding.moved_columns import MovedColumns
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.walk_back import WalkBack, dimension, input_of, int_of

Columns = NDArray[np.int64]


@dataclass(frozen=True)
class _Layout:
    """How the channels of o_proj's input lie in the values.

    heads, size: of queries, and channels of each.
    groups: heads of values; None where their width tells.
    before: columns in front of the values.
    part, parts: values are part `part` of `parts` of every head.
    repeats: query heads of each head of values where nodes repeat those; 0 where an op does.
    cache: the cached values, where a node joins them.
    sliced: channels of all parts of a head where a Slice takes one of them.
    """

    heads: int
    size: int
    groups: int | None = None
    before: int = 0
    part: int = 0
    parts: int = 1
    repeats: int = 1
    cache: ir.Value | None = None
    sliced: int | None = None

    def columns(self, width: int) -> Columns | None:
        """The column behind each channel [heads * size]; None where `width` is another."""
        groups = self.groups or width // (self.size * self.parts)
        if groups == 0 or self.heads % groups:
            return None
        if width != self.before + groups * self.size * self.parts:
            return None
        # A reshape may have merged other than all heads of a token.
        if self.groups is None and self.repeats and groups * self.repeats != self.heads:
            if groups != 1 or self.repeats != 1:  # one head serves any number
                return None
        head = np.arange(self.heads, dtype=np.int64) // (self.heads // groups)
        first = self.before + (head * self.parts + self.part) * self.size
        return (first[:, None] + np.arange(self.size)).reshape(-1)


def value_source(
    x: ir.Value, k: int, by_output: Mapping[int, Linear], moved: MovedColumns | None = None
) -> tuple[Linear, Columns] | None:
    """The linear whose columns become the channels of x through attention.

    Args:
        x: input of a linear.
        k: its channels.
        by_output: linears by the id of their output value.
        moved: of the graph; asked where the spelling is none of those known here.

    Returns:
        The linear, and for each channel of x the column of it, int64 [k]; or None.
    """
    found = _by_spelling(x, k, by_output)
    walk = WalkBack(x)
    merge_channels(walk)
    if found is None and moved is not None and swap_heads(walk):
        return _by_movement(x, k, by_output, moved)
    return found


def _by_spelling(
    x: ir.Value, k: int, by_output: Mapping[int, Linear]
) -> tuple[Linear, Columns] | None:
    walk = WalkBack(x)
    merge_channels(walk)
    node = walk.value.producer()
    op = ATTENTION_OPS.get((domain_of(node), node.op_type)) if node is not None else None
    if node is not None and op is not None:
        layout = _through_op(walk, node, op, k)
    else:
        layout = _through_heads(walk, k)
    if layout is None:
        return None
    found = columns_of(walk, by_output)
    if found is None:
        return None
    source, first, width = found
    columns = layout.columns(width)
    if layout.sliced is not None and width != source.n:
        return None  # a Slice of columns before the one in heads
    others = picks_others(layout.sliced or source.n)
    if columns is None or not walk.leads_only_here(others, layout.cache):
        return None
    return source, columns + first


def _by_movement(
    x: ir.Value, k: int, by_output: Mapping[int, Linear], moved: MovedColumns
) -> tuple[Linear, Columns] | None:
    walk = WalkBack(x, moved.unchanged)
    merge_channels(walk)
    core = core_of(walk)
    found = moved.of_heads(walk.value, by_output) if core is not None else None
    if core is None or found is None:
        return None
    source, table = found
    groups, size = table.shape
    heads = k // size
    if k % size or core.heads not in (None, heads) or not core.suits(groups, heads):
        return None
    if not walk.leads_only_here(lambda node, other: False, core.cache):
        return None
    return source, table[np.arange(heads) // (heads // groups)].reshape(-1)


def _through_op(walk: WalkBack, node: ir.Node, op: AttentionOp, k: int) -> _Layout | None:
    """Through an op that takes and gives [batch, tokens, channels]."""
    heads = int_of(node, op.heads)
    groups = int_of(node, "kv_num_heads") or heads
    if not heads or not groups or k % heads or heads % groups or not owns_cache(node, op):
        return None
    size = k // heads
    packed = input_of(node, VALUE) is None
    if packed and node.op_type != "GroupQueryAttention":
        return None
    walk.take(node.op_type, 0 if packed else VALUE, domain_of(node))
    return _Layout(heads, size, groups, before=(heads + groups) * size if packed else 0)


def _through_heads(walk: WalkBack, k: int) -> _Layout | None:
    """Through what works on [batch, heads, tokens, size]."""
    core = core_of(walk)
    found = _size_of_heads(walk) if core is not None else None
    if core is None or found is None:
        return None
    size, part, parts, sliced = found
    if k % size or core.heads not in (None, k // size):
        return None
    return _Layout(k // size, size, None, 0, part, parts, core.repeats, core.cache, sliced)


def _size_of_heads(walk: WalkBack) -> tuple[int, int, int, int | None] | None:
    """From [batch, heads, tokens, size] to channels: size, which part of how many, and `sliced`.

    Parts: of [batch, tokens, heads, parts, size], or of [batch, heads, tokens, parts * size].
    """
    value = walk.value
    cut = walk.take("Split") or walk.take("Slice")
    if not swap_heads(walk):
        return None
    picked = walk.take("Gather") if cut is None else None
    shaped = walk.take("Reshape")
    last = dimension(shaped.inputs[1], -1) if shaped is not None else None
    if shaped is None or last is None or last <= 0:
        return None
    if cut is not None and cut.op_type == "Slice":
        first, end = span_of(cut, last) or (0, 0)
        size = end - first
        whole = size > 0 and last % size == 0 and first % size == 0
        return (size, first // size, last // size, last) if whole else None
    if cut is not None:
        sizes = scalar_ints(input_of(cut, 1)) or [last // len(cut.outputs)] * len(cut.outputs)
        if int_of(cut, "axis") not in (-1, 3) or len(set(sizes)) != 1 or sum(sizes) != last:
            return None
        return sizes[0], [id(output) for output in cut.outputs].index(id(value)), len(sizes), None
    if picked is not None:
        index = scalar_ints(picked.inputs[1])
        parts = dimension(shaped.inputs[1], -2) or 0
        if int_of(picked, "axis") != 3 or index is None or not 0 <= index[0] < parts:
            return None
        return last, index[0], parts, None
    return last, 0, 1, None


def columns_of(walk: WalkBack, by_output: Mapping[int, Linear]) -> tuple[Linear, int, int] | None:
    """The linear whose columns the value is: the linear, the first column and their count."""
    value = walk.value
    if id(value) in by_output:
        return by_output[id(value)], 0, by_output[id(value)].n
    split = walk.take("Split") or walk.take("Slice")
    if split is None:
        return None
    shaped = walk.take("Reshape") if id(walk.value) not in by_output else None
    source = by_output.get(id(walk.value))
    if source is None:
        return None
    if shaped is not None and dimension(shaped.inputs[1], -1) != source.n:
        return None
    if split.op_type == "Slice":
        span = span_of(split, source.n)
        return None if span is None else (source, span[0], span[1] - span[0])
    sizes = scalar_ints(input_of(split, 1))
    if input_of(split, 1) is None and source.n % len(split.outputs) == 0:
        sizes = [source.n // len(split.outputs)] * len(split.outputs)
    last = is_last(int_of(split, "axis"), split.inputs[0])
    if sizes is None or not last or sum(sizes) != source.n:
        return None
    index = [id(output) for output in split.outputs].index(id(value))
    return source, sum(sizes[:index]), sizes[index]
