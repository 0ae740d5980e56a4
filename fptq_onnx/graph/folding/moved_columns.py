"""Which column of a linear each element of a value is, where nodes only move, pick or repeat them.

    heads = Transpose(Reshape(Expand(Gather(Reshape(qkv, [b, t, groups, parts, size]), ...))))

Found by moving the numbers of the columns through those nodes, so any spelling will do. Sizes that
are known by name only get small primes, a different one for each name: a column is the same at
every position, or the value is none of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.constants import constant_of
from fptq_onnx.graph.linears.linears import FLOAT_TYPES, Linear
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.shape_table import SizeTable
from fptq_onnx.graph.shapes.symbolic_shapes import known_sizes
from fptq_onnx.graph.walk_back import READS_SHAPE_ONLY, input_of, int_of

Columns = NDArray[np.int64]
_PRIMES = (2, 3, 5, 7, 11, 13)


class MovedColumns:
    """Asked about the linears of one graph, which must not change meanwhile.

    The sizes in it are found when first needed: that takes as long as everything else here.
    """

    def __init__(self) -> None:
        self._table: SizeTable | None = None
        self._primes: dict[str, int] = {}

    def unchanged(self, node: ir.Node) -> bool:
        """Whether a node is a Reshape to the shape that its input has already.

        All sizes but one are enough: the number of elements stays, so that the last one does too.
        """
        if node.op_type != "Reshape" or domain_of(node) != "":
            return False
        known = self._known(node)
        before, after = (known.shape(value) for value in (node.inputs[0], node.outputs[0]))
        if before is None or after is None or len(before) != len(after):
            return False
        return sum(one != other for one, other in zip(before, after, strict=True)) <= 1

    def of_heads(
        self, value: ir.Value, by_output: Mapping[int, Linear]
    ) -> tuple[Linear, Columns] | None:
        """The columns in a value [batch, heads, tokens, size] that nothing else reads.

        Args:
            value: its own readers are not looked at.
            by_output: linears by the id of their output value.

        Returns:
            The linear, and for each head and channel the column of it, int64 [heads, size].
        """
        way: list[tuple[ir.Node, ir.Value]] = []
        source = value
        while id(source) not in by_output:
            node = source.producer()
            if node is None or not _moves(node) or node.inputs[0] is None:
                return None
            way.append((node, source))
            source = node.inputs[0]
        linear = by_output[id(source)]
        start = self._numbers(linear)
        if start is None:
            return None
        ids = start
        for node, reached in reversed(way):
            moved = self._move(node, ids)
            if moved is None:
                return None
            ids = moved[id(reached)]
        if ids.ndim != 4 or (ids != ids[:1, :, :1]).any():
            return None
        columns = ids[0, :, 0]
        taken = np.unique(columns)
        return (linear, columns) if self._leads_only_to(value, linear, start, taken) else None

    def _leads_only_to(self, end: ir.Value, linear: Linear, start: Columns, taken: Columns) -> bool:
        """Whether these columns of a linear reach no other node than those on the way to `end`."""
        pending = [(linear.output, start)]
        while pending:
            value, ids = pending.pop()
            if value is end or not np.isin(ids, taken).any():
                continue
            if value.is_graph_output():
                return False
            for use in value.uses():
                if use.node.op_type in READS_SHAPE_ONLY:
                    continue
                moved = self._move(use.node, ids) if use.idx == 0 else None
                if moved is None:
                    return False
                outputs = use.node.outputs
                pending += [(item, moved[id(item)]) for item in outputs if id(item) in moved]
        return True

    def _known(self, node: ir.Node) -> SizeTable:
        if self._table is None:
            assert isinstance(node.graph, ir.Graph)
            self._table = known_sizes(node.graph)
        return self._table

    def _concrete(self, node: ir.Node, value: ir.Value) -> tuple[int, ...] | None:
        """The shape of a value, with primes for names."""
        shape = self._known(node).shape(value)
        if shape is None:
            return None
        return tuple(sum(self._term(term) for term in str(size).split("+")) for size in shape)

    def _term(self, text: str) -> int:
        text = text.strip()
        if text.lstrip("-").isdigit():
            return int(text)
        return self._primes.setdefault(text, _PRIMES[len(self._primes) % len(_PRIMES)])

    def _numbers(self, linear: Linear) -> Columns | None:
        shape = self._concrete(linear.nodes[-1], linear.output)
        if shape is None or shape[-1:] != (linear.n,) or len(shape) > 3:
            return None
        return np.broadcast_to(np.arange(linear.n), shape)

    def _move(self, node: ir.Node, ids: Columns) -> dict[int, Columns] | None:
        """What a node makes of columns, by the id of its outputs; None where it computes."""
        if not _moves(node):
            return None
        target = self._concrete(node, node.outputs[0])
        try:
            made = _MOVES[node.op_type](node, ids, target)
        except (ValueError, IndexError):  # sizes that do not fit: not understood
            return None
        if made is None:
            return None
        return {id(value): part for value, part in zip(node.outputs, made, strict=True)}


def _moves(node: ir.Node) -> bool:
    if domain_of(node) != "" or node.op_type not in _MOVES or node.inputs[0] is None:
        return False
    return node.op_type != "Cast" or node.attributes["to"].as_int() in FLOAT_TYPES


_Shape = tuple[int, ...] | None
_Made = list[Columns] | None


def _as_it_is(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    return [ids]


def _reshape(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    return None if target is None or math.prod(target) != ids.size else [ids.reshape(target)]


def _expand(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    return None if target is None else [np.broadcast_to(ids, target)]


def _transpose(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    perm = node.attributes.get("perm")
    return [ids.transpose(None if perm is None else list(perm.as_ints()))]


def _gather(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    index = _constant(node, 1)
    return None if index is None else [ids.take(index, int_of(node, "axis") or 0)]


def _gather_nd(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    index = _constant(node, 1)
    if index is None or index.shape[-1:] != (1,) or int_of(node, "batch_dims"):
        return None
    return [ids.take(index[..., 0], 0)]


def _slice(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    starts, ends, axes, steps = (_constant(node, index) for index in range(1, 5))
    if starts is None or ends is None:
        return None
    if any(input_of(node, index) is not None and given is None
           for index, given in ((3, axes), (4, steps))):  # fmt: skip
        return None
    cut = [slice(None)] * ids.ndim
    for number, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else int(steps[number])
        cut[int(axis)] = slice(int(starts[number]), int(ends[number]), step)
    return [ids[tuple(cut)]]


def _split(node: ir.Node, ids: Columns, target: _Shape) -> _Made:
    sizes, axis = _constant(node, 1), int_of(node, "axis") or 0
    if input_of(node, 1) is not None and sizes is None:
        return None
    parts: Any = len(node.outputs) if sizes is None else np.cumsum(sizes)[:-1]
    return list(np.split(ids, parts, axis))


def _constant(node: ir.Node, index: int) -> NDArray[Any] | None:
    value = input_of(node, index)
    constant = None if value is None else constant_of(value)
    return None if constant is None else constant.load()


_MOVES: dict[str, Callable[[ir.Node, Columns, _Shape], _Made]] = {
    "Cast": _as_it_is,
    "Identity": _as_it_is,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Expand": _expand,
    "Transpose": _transpose,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Slice": _slice,
    "Split": _split,
}
