"""Where the equalization of an activation can be folded: the gain (and bias) of the norm before it.

The unit is one activation with ALL its consumers. Dividing channel j of a normalized value by s_j
is free when every reader of that value is a linear, whose row j of W then takes s_j. Forms found:

    SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization, RMSNormalization   gain
    LayerNormalization, SkipLayerNormalization                                        gain, bias
    Mul(normalized, gain)                       decomposed RMSNorm, gain a constant [K]
    Add(one of the above, bias)                 decomposed LayerNorm

Casts and reshapes may stand between the norm and its linears: they keep the order of elements, so
channel j of the linear is still channel j of the gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.constants import Constant, constant_of
from fptq_onnx.graph.linears import FLOAT_TYPES, Linear

# Op -> positions of the inputs that scale linearly with the normalized output (gain, then bias).
# The fourth input of SkipSimplifiedLayerNormalization is added before the norm: not among them.
_FUSED_NORMS: dict[str, tuple[int, ...]] = {
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
_PASS_THROUGH = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_READS_SHAPE_ONLY = ("Shape", "Size")
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Operand:
    """One constant input of a node that a fold rewrites."""

    node: ir.Node
    index: int
    constant: Constant


@dataclass(frozen=True)
class FoldSite:
    """A norm output whose division by s can be absorbed on both sides.

    name: name of the norm's node, the key in plans.
    operands: gain and bias inputs to be divided by s, each constant [K].
    linears: names of every linear that reads the value, all of which take s into their weights.
    """

    name: str
    operands: tuple[Operand, ...]
    linears: tuple[str, ...]


def find_fold_sites(linears: Sequence[Linear]) -> dict[str, FoldSite | str]:
    """For each linear (by name) the site its input folds into, or the reason there is none."""
    by_node = {id(linear.nodes[0]): linear for linear in linears}
    return {linear.name: _site_of(linear, by_node) for linear in linears}


def _site_of(linear: Linear, by_node: Mapping[int, Linear]) -> FoldSite | str:
    value = linear.x
    producer = value.producer()
    while producer is not None and passes_through(producer):
        source = producer.inputs[0]
        if source is None:
            break
        value, producer = source, source.producer()
    if producer is None:
        return "its input comes straight from a model input"
    operands = _norm_operands(value, producer, linear.k)
    if isinstance(operands, str):
        return operands
    for operand in operands:
        shared = _shared_with(operand)
        if shared:
            return shared
    readers = readers_of(value, by_node)
    if isinstance(readers, str):
        return readers
    for reader in readers:
        if reader.k != linear.k:
            return f"{value.name} is also read by {reader.name} with another channel count"
    names = tuple(reader.name for reader in readers)
    return FoldSite(producer.name or "", tuple(operands), names)


def passes_through(node: ir.Node) -> bool:
    """Whether a node keeps every element and their order: casts between floats, reshapes."""
    if node.op_type not in _PASS_THROUGH or node.domain not in _STANDARD:
        return False
    # A cast to integers rounds: what comes after it is not linear in the gain any more.
    return node.op_type != "Cast" or node.attributes["to"].as_int() in FLOAT_TYPES


def _norm_operands(value: ir.Value, producer: ir.Node, k: int) -> list[Operand] | str:
    """The gain (and bias) inputs behind a norm's output, or why there are none."""
    op = producer.op_type
    operands: list[Operand | str]
    if op in _FUSED_NORMS:
        if value.index() != 0:
            return f"its input is not the normalized output of {producer.name}"
        positions = _FUSED_NORMS[op]
        operands = [_operand(producer, i, k) for i in positions if _has_input(producer, i)]
    elif op == "Mul" and producer.domain in _STANDARD:
        operands = [_vector_operand(producer, k)]
    elif op == "Add" and producer.domain in _STANDARD:
        bias = _vector_operand(producer, k)
        if isinstance(bias, str):
            return f"its input is the sum {producer.name}, which has no gain to fold into"
        other = producer.inputs[1 - bias.index]
        scale = other.producer() if other is not None else None
        if other is None or scale is None:
            return f"its input is the sum {producer.name}, which has no gain to fold into"
        if len(other.uses()) != 1 or other.is_graph_output():
            return f"the value before the bias of {producer.name} feeds other nodes too"
        inner = _norm_operands(other, scale, k)
        if isinstance(inner, str):
            return inner
        operands = [*inner, bias]
    else:
        return f"its input is made by {producer.name} ({op}), which has no gain to fold into"
    for operand in operands:
        if isinstance(operand, str):
            return operand
    return [operand for operand in operands if isinstance(operand, Operand)]


def _has_input(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _operand(node: ir.Node, index: int, k: int) -> Operand | str:
    constant = constant_of(node.inputs[index])
    if constant is None:
        return f"the gain or bias of {node.name} is not a constant"
    if constant.shape != (k,):
        return f"the gain or bias of {node.name} has shape {constant.shape}, not ({k},)"
    return Operand(node, index, constant)


def _vector_operand(node: ir.Node, k: int) -> Operand | str:
    """The constant [K] operand of an elementwise node."""
    for index, value in enumerate(node.inputs):
        constant = constant_of(value)
        if constant is None or constant.shape != (k,) or constant.dtype not in FLOAT_TYPES:
            continue
        return Operand(node, index, constant)
    return f"its input is made by {node.name} ({node.op_type}), which has no gain to fold into"


def _shared_with(operand: Operand) -> str:
    """Why a gain cannot be divided: something else reads it. Empty when nothing does."""
    for source in operand.constant.sources:
        tensor = constant_of(source)
        if tensor is not None and math.prod(tensor.shape) == 1 < math.prod(operand.constant.shape):
            continue  # the 1 of gemma's 1 + w, which every norm reads
        if source.is_graph_output():
            return f"the gain {source.name} is also an output of the model"
        for use in source.uses():
            if use.node is not operand.node and not _leads_only_to(use.node, operand.node):
                return f"the gain {source.name} also feeds {use.node.name}"
    return ""


def _leads_only_to(node: ir.Node, target: ir.Node) -> bool:
    """Whether a node (a Cast of the gain, say) feeds nothing but the target."""
    for output in node.outputs:
        if output.is_graph_output() or not output.uses():
            return False
        for use in output.uses():
            if use.node is not target and not _leads_only_to(use.node, target):
                return False
    return True


def readers_of(root: ir.Value, by_node: Mapping[int, Linear]) -> list[Linear] | str:
    """All linears that read a value, through casts and reshapes; or what else reads it."""
    readers: list[Linear] = []
    pending = [root]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return f"the normalized value {value.name} is an output of the model"
        for use in value.uses():
            linear = by_node.get(id(use.node))
            if linear is not None and use.idx == 0:
                readers.append(linear)
            elif passes_through(use.node) and use.idx == 0:
                pending.append(use.node.outputs[0])
            elif use.node.op_type not in _READS_SHAPE_ONLY:
                return (
                    f"the normalized value {value.name} also feeds "
                    f"{use.node.name} ({use.node.op_type})"
                )
    return readers
