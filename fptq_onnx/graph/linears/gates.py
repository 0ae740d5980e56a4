"""Linears that decide rather than compute: routers of experts, and gates of recurrences.

    linear -> softmax, bias, ... -> TopK -> what is computed next       a router (steering.py)
    linear -> reshape -> MoE, an input other than the first             a router
    linear -> Softmax -> one column each -> Mul(an expert's output)     a router that weighs all
    linear -> Tanh -> a linear that is one of the above                 a layer of a router
    linear of one column -> Sigmoid -> Mul(an MLP's output)             the gate of a shared expert
    small linear -> Exp, Softplus or Sigmoid -> Scan, CumSum, ...       the decay of a recurrence

An error in their output moves a token to another expert, or is taken to the power of the number of
tokens; they are small. Found by structure, names do not count. A linear whose picks only become
outputs of the model (a head with ArgMax, a classifier) is none of these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.linears.router_layers import hidden_layers
from fptq_onnx.graph.linears.sources import PICKERS, SHAPE_ONLY, Sources
from fptq_onnx.graph.linears.steering import COMPUTES, PRODUCTS, steers

_MOST_VALUES = 256  # that are looked at after one linear: what decides follows at once
_PICKS, _CHOOSES = "picks experts", "picks what is computed"
_WEIGHS = "weighs what other linears make"
_ROUTES = (_PICKS, _CHOOSES, _WEIGHS)
_EXPERTS = ("MoE", "QMoE", "MoEPacked")
_COMPARES = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_LARGEST = ("ReduceMax", "TopK", "ReduceMin")
_MASKS = ("NonZero", "Compress")
_SIGMOIDS = ("Sigmoid", "HardSigmoid", "Tanh")
_DECAYS = ("Exp", "Softplus", "Sigmoid", "LinearAttentionGate")
_RECURRENT = (
    "Scan", "Loop", "CumSum", "CumProd", "LinearAttention", "GatedDeltaNet", "GatedDeltaRule",
    "SelectiveScan", "MambaScan",
)  # fmt: skip
_NORMS = (
    "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "BatchNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNormalization",
    "GatedRMSNorm",
)  # fmt: skip
_KEEPS = (
    "Cast",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Expand",
    "Slice",
    "Split",
    "Gather",
)
_RESHAPES = (
    "Transpose", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split",
    "ReduceSum", "ReduceMax",
)  # fmt: skip
_BEFORE_DECAYS = (
    "Add",
    "Sub",
    "Neg",
    "Cast",
    "Identity",
    "Clip",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
)
_SMALL = 4  # times smaller is one side of a decay's weight than the other


@dataclass(frozen=True)
class _State:
    """What a value on the way from a linear is.

    whole: its last axis is the linear's columns.
    softmax, sigmoid: such a function of them was taken, the softmax over all of them.
    column: its last axis is one column.
    decay: a function was taken that makes a rate of decay.
    """

    whole: bool = True
    softmax: bool = False
    sigmoid: bool = False
    column: bool = False
    decay: bool = False


def find_gates(linears: Sequence[Linear]) -> dict[str, str]:
    """By name of each linear that decides, how: a phrase to follow 'its output'.

    The hidden layers of a router (router_layers.py) are among them.

    Args:
        linears: all of one graph, in graph order.
    """
    if not linears:
        return {}
    sources = Sources(linears)
    found = ((linear.name, _decides(linear, sources)) for linear in linears)
    gates = {name: how for name, how in found if how}
    routers = [linear for linear in linears if gates.get(linear.name, "").startswith(_ROUTES)]
    for hidden, router in hidden_layers(routers, sources).items():
        if hidden not in gates:
            gates[hidden] = f"goes only to {router}, whose output {gates[router]}"
    return gates


def _decides(linear: Linear, sources: Sources) -> str:
    start = (linear.output, _State(column=linear.n == 1))
    pending, seen = deque([start]), {(id(linear.output), start[1])}
    inside = {id(linear.output)}
    while pending and len(seen) < _MOST_VALUES:
        value, state = pending.popleft()
        for use in value.uses():
            node = use.node
            if node.op_type in SHAPE_ONLY or node.op_type in _NORMS:
                continue
            how = _at(node, use.idx, value, state, linear, sources, inside)
            if how:
                return how
            if node.op_type in (*_EXPERTS, *_RECURRENT, *COMPUTES, *PRODUCTS, "If"):
                continue
            for output, then in _onward(node, state, linear, sources):
                if (id(output), then) not in seen:
                    seen.add((id(output), then))
                    inside.add(id(output))
                    pending.append((output, then))
    return ""


def _at(
    node: ir.Node,
    index: int,
    value: ir.Value,
    state: _State,
    linear: Linear,
    sources: Sources,
    inside: set[int],
) -> str:
    """What the linear decides at a node; ''."""
    place = f"({node.op_type} {node.name})"
    if node.op_type in _EXPERTS:
        return f"{_PICKS} {place}" if index > 0 else ""
    if node.op_type == "If":
        return f"{_CHOOSES} {place}"
    compares = node.op_type in _COMPARES and any(_is_largest(v, inside) for v in node.inputs)
    if compares or node.op_type in (*PICKERS, *_MASKS):
        if (index == 0 or compares or node.op_type == "Compress") and steers(
            sources, node.outputs, linear
        ):
            return f"{_PICKS} {place}"
        return ""
    others = [
        other for other in node.inputs
        if other is not None and other is not value and not sources.is_constant(other)
    ]  # fmt: skip
    weighs = (state.softmax and linear.n > 1) or state.sigmoid
    if node.op_type == "Where" and index == 0:
        if any(sources.another_linear(other, linear) for other in others):
            return f"{_PICKS} {place}"
    elif node.op_type == "Mul" and weighs and state.column:
        # Columns of several channels weigh the channels of an image; one column all of it.
        images = linear.n == 1
        if any(sources.another_linear(o, linear, convolutions=images) for o in others):
            return f"{_WEIGHS} {place}"
    elif node.op_type in PRODUCTS and weighs and id(node) not in sources.by_product:
        if (others and sources.products.holds_experts(node, linear.n)) or any(
            _holds_several(other, linear, sources) for other in others
        ):
            return f"{_WEIGHS} {place}"
    decay = state.decay or _decays_inside(node, index)
    if decay and _is_small(linear) and _recurs(node, others, linear, sources):
        return f"sets how fast a state decays {place}"
    return ""


def _recurs(node: ir.Node, others: Sequence[ir.Value], linear: Linear, sources: Sources) -> bool:
    if node.op_type in _RECURRENT or node.graph is not sources.graph:
        return True
    return node.op_type == "Mul" and any(sources.is_state(other, linear) for other in others)


def _decays_inside(node: ir.Node, index: int) -> bool:
    """Whether the body of a Scan or Loop makes a rate of decay of an input of it."""
    if node.op_type not in ("Scan", "Loop"):
        return False
    pending = list(node.attributes["body"].as_graph().inputs[index : index + 1])
    while pending:
        for use in pending.pop().uses():
            if use.node.op_type in _DECAYS:
                return True
            if use.node.op_type in _BEFORE_DECAYS:
                pending.extend(use.node.outputs)
    return False


def _is_small(linear: Linear) -> bool:
    return _SMALL * min(linear.k, linear.n) <= max(linear.k, linear.n)


def _is_largest(value: ir.Value | None, inside: set[int]) -> bool:
    """Whether a value is the largest of some that a linear made, in another shape or not."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in _LARGEST:
            return id(node.inputs[0]) in inside
        if node.op_type not in _KEEPS:
            return False
        value = node.inputs[0]
    return False


def _holds_several(value: ir.Value, linear: Linear, sources: Sources) -> bool:
    """Whether a value is a stack of what several other linears make."""
    node = value.producer()
    while node is not None and node.op_type in (*_KEEPS, "Transpose") and node.inputs[0]:
        node = node.inputs[0].producer()
    if node is not None and sources.products.holds_experts(node, linear.n):
        return True
    if node is None or node.op_type not in ("Concat", "ConcatFromSequence", "Sum"):
        return False
    parts = [part for part in node.inputs if part is not None]
    different = {frozenset(sources.last_linears(part)) for part in parts}
    return len(different) > 1 and all(sources.another_linear(part, linear) for part in parts)


def _onward(
    node: ir.Node, state: _State, linear: Linear, sources: Sources
) -> Iterator[tuple[ir.Value, _State]]:
    """The values a node makes of one in a state, and their states."""
    kind = node.op_type
    if kind in _DECAYS:
        state = replace(state, decay=True)
    if kind in _SIGMOIDS:
        state = replace(state, sigmoid=True)
    elif kind == "Softmax":
        over_columns = state.whole and _is_last_axis(node, sources)
        state = replace(state, softmax=over_columns, sigmoid=False)
    elif kind in _RESHAPES:
        last = 1 if _adds_last_axis(node) else sources.last_size(node.outputs[0])
        kept = kind != "Transpose" and last == linear.n
        state = replace(state, whole=state.whole and kept, column=last == 1)
    for output in node.outputs:
        yield output, state


def _is_last_axis(node: ir.Node, sources: Sources) -> bool:
    axis, source = node.attributes.get("axis"), node.inputs[0]
    version = sources.graph.opset_imports.get("", 13)
    found = axis.as_int() if axis is not None else (-1 if version >= 13 else 1)
    return found == -1 or (source is not None and sources.rank(source) == found + 1)


def _adds_last_axis(node: ir.Node) -> bool:
    """Whether an Unsqueeze puts an axis of one behind all others."""
    if node.op_type != "Unsqueeze" or len(node.inputs) < 2:
        return False
    return -1 in (scalar_ints(node.inputs[1]) or ())
