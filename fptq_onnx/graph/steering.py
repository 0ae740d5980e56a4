"""Whether what a linear picks steers other computation, as a router's picks do.

    TopK -> Gather(hidden, indices) -> experts        tokens are sent somewhere
    TopK -> Gather(W [E, K, N], indices) -> MatMul    weights are chosen
    TopK -> Scatter -> Mul(experts' outputs)          outputs are mixed

The tokens that a head picks become outputs, reorder a cache or are looked up in a table again, and
values that are zeroed but for the largest are the input of the next linear as any activation is:
none of these is a router.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal

import onnx_ir as ir

from fptq_onnx.graph.linears import MATMUL_LIKE, Linear
from fptq_onnx.graph.sources import SHAPE_ONLY, Sources

# What a value is: picks alone; an activation that they had a part in; rows of a table; or ...
_PICK, _STEERED, _TABLE = "pick", "steered", "table"
_CHOSEN = "chosen"  # of what another linear made: a box of the best class, or an expert's output
_MOST_VALUES = 4096  # that are looked at: experts are near
_LOOKUPS = ("Gather", "GatherND", "GatherElements", "Compress")
_PUTS = ("ScatterND", "ScatterElements", "Scatter", "TensorScatter")
_WEIGHS = ("Mul", "Where", *_PUTS)
PRODUCTS = (*MATMUL_LIKE, "Einsum")
COMPUTES = (
    "Conv", "FusedConv", "LSTM", "GRU", "RNN", "MoE", "QMoE", "MatMulNBits", "MatMulInteger",
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "PagedAttention", "LinearAttention",
    "SparseAttention", "DecoderMaskedMultiHeadAttention", "QLinearMatMul", "MatMulIntegerToFloat",
)  # fmt: skip


def steers(sources: Sources, picks: Iterable[ir.Value], linear: Linear) -> bool:
    """Whether something else is computed, or weighed, by what a linear picks.

    Args:
        sources: of the linear's graph.
        picks: values that hold what is picked.
        linear: it.
    """
    pending = deque((value, _PICK) for value in picks)
    seen = {(id(value), state) for value, state in pending}
    while pending and len(seen) < _MOST_VALUES:
        value, state = pending.popleft()
        for use in value.uses():
            if use.node.op_type in SHAPE_ONLY:
                continue
            found = _after(sources, use.node, use.idx, value, state, linear)
            if found is True:
                return True
            for made, then in found:
                if (id(made), then) not in seen:
                    seen.add((id(made), then))
                    pending.append((made, then))
    return False


def _after(
    sources: Sources, node: ir.Node, index: int, value: ir.Value, state: str, linear: Linear
) -> Literal[True] | Iterator[tuple[ir.Value, str]]:
    """True where a node computes as it is told, or the values it makes with what they are."""
    if node.op_type == "If" or (node.op_type == "Loop" and index < 2):
        return True
    if node.op_type in ("Loop", "Scan"):
        body = node.attributes["body"].as_graph()
        inside = body.inputs[index : index + 1]
        return iter([*((inner, state) for inner in inside), *_outputs(node, state)])
    if id(node) in sources.by_product or node.op_type in COMPUTES:
        if index == 0 or id(node) in sources.by_product:
            return True if state in (_STEERED, _CHOSEN) else iter(())
        return True if state != _TABLE else iter(())
    others = [
        other for other in node.inputs
        if other is not None and other is not value and not sources.is_constant(other)
    ]  # fmt: skip
    if node.op_type in PRODUCTS:
        return _product(sources, node, others, state, linear)
    if node.op_type in _LOOKUPS and index == 1:
        data = node.inputs[0]
        assert data is not None  # a lookup's first input is not optional
        if sources.is_constant(data):
            rank = sources.rank(data) or 0
            if rank >= 3:
                return True  # one matrix of all experts'
            return _outputs(node, _TABLE if rank == 2 else state)
        if state != _TABLE and sources.another_linear(data, linear):
            return _outputs(node, _CHOSEN)
    if state == _TABLE:
        return _outputs(node, state)
    if node.op_type in _WEIGHS and any(sources.another_linear(o, linear) for o in others):
        return True
    if state == _CHOSEN:
        summed = node.op_type in ("Add", "Sum") and bool(others)
        weighed = node.op_type == "Mul" and any(sources.last_linears(other) for other in others)
        return True if summed or weighed else _outputs(node, state)
    if state == _PICK and not all(sources.is_of(other, linear) for other in others):
        state = _STEERED
    return _outputs(node, state)


def _product(
    sources: Sources, node: ir.Node, others: list[ir.Value], state: str, linear: Linear
) -> Literal[True] | Iterator[tuple[ir.Value, str]]:
    """A product that is no linear: with other activations, or with all experts' weights."""
    if not others:
        return True if state in (_STEERED, _CHOSEN) else iter(())
    if state == _TABLE or any(sources.another_linear(other, linear) for other in others):
        return True
    return _outputs(node, _STEERED)


def _outputs(node: ir.Node, state: str) -> Iterator[tuple[ir.Value, str]]:
    return ((made, state) for made in node.outputs)
