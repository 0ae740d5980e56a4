"""Where the equalization of an activation can be folded: the gain (and bias) of the norm before it.

The unit is one activation with ALL its consumers. Dividing channel j of a normalized value by s_j
is free when every reader of that value is a linear, whose row j of W then takes s_j. Forms found:

    SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization, RMSNormalization   gain
    LayerNormalization, SkipLayerNormalization                                        gain, bias
    Mul(normalized, gain)                       decomposed RMSNorm, gain a constant [K]
    Add(one of the above, bias)                 decomposed LayerNorm
    EmbedLayerNormalization                                                           gain, bias
    BatchNormalization of [rows, channels]      scale, bias

Between the norm and its linears may stand what leaves channel j in its place (channel_paths.py).

A gain that several norms share is no obstacle: the fold gives its norm a constant of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.constants import Constant, constant_of
from fptq_onnx.graph.folding.channel_paths import Joined, keeps_order, may_pass, passes_on
from fptq_onnx.graph.linears.linears import FLOAT_TYPES, Linear
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.shapes.rank import rank_of

# Op -> positions of the inputs that scale linearly with the normalized output (gain, then bias).
# The fourth input of SkipSimplifiedLayerNormalization is added before the norm: not among them.
_FUSED_NORMS: dict[str, tuple[int, ...]] = {
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
    "BatchNormalization": (1, 2),
    "EmbedLayerNormalization": (5, 6),
}
_READS_SHAPE_ONLY = ("Shape", "Size")


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
    while producer is not None:
        source = may_pass(producer)
        if source is None:
            break
        value, producer = source, source.producer()
    if producer is None:
        return "its input comes straight from a model input"
    operands = _norm_operands(value, producer, linear.k)
    if isinstance(operands, str):
        return operands
    readers = readers_of(value, by_node, linear.k)
    if isinstance(readers, str):
        return readers
    for reader in readers:
        if reader.k != linear.k:
            return f"{value.name} is also read by {reader.name} with another channel count"
    names = tuple(reader.name for reader in readers)
    return FoldSite(producer.name or "", tuple(operands), names)


def passes_through(node: ir.Node) -> bool:
    """Whether a node keeps every element and their order: casts between floats, reshapes."""
    return keeps_order(node)


def _norm_operands(value: ir.Value, producer: ir.Node, k: int) -> list[Operand] | str:
    """The gain (and bias) inputs behind a norm's output, or why there are none."""
    op = producer.op_type
    operands: list[Operand | str]
    if op in _FUSED_NORMS:
        if value.index() != 0:
            return f"its input is not the normalized output of {producer.name}"
        if op == "BatchNormalization" and (obstacle := _batch_obstacle(producer)):
            return obstacle
        positions = _FUSED_NORMS[op]
        operands = [_operand(producer, i, k) for i in positions if _has_input(producer, i)]
    elif op == "Mul" and domain_of(producer) == "":
        operands = [_vector_operand(producer, k)]
    elif op == "Add" and domain_of(producer) == "":
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


def _batch_obstacle(node: ir.Node) -> str:
    """Why a BatchNormalization does not scale the last axis by constants; ''."""
    training = node.attributes.get("training_mode")
    if (training is not None and training.as_int()) or len(node.outputs) > 1:
        return f"its input is made by {node.name} (BatchNormalization) in training mode"
    rank = None if node.inputs[0] is None else rank_of(node.inputs[0])
    if rank != 2:
        found = "of unknown rank" if rank is None else f"with {rank} axes"
        return (
            f"its input is made by {node.name} (BatchNormalization) from a value {found}: it "
            f"scales the second axis, a linear multiplies the last one"
        )
    return ""


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
        if constant is None or constant.dtype not in FLOAT_TYPES:
            continue
        if constant.shape[-1:] != (k,) or any(size != 1 for size in constant.shape[:-1]):
            continue
        return Operand(node, index, constant)
    return f"its input is made by {node.name} ({node.op_type}), which has no gain to fold into"


def readers_of(
    root: ir.Value, by_node: Mapping[int, Linear], channels: int | None = None
) -> list[Linear] | str:
    """All linears that read a value; or what else reads it.

    Args:
        root: the value.
        by_node: the linears by the id of their product's node.
        channels: size of the root's last axis, to look through nodes that choose or move rows too;
            without it, through casts and reshapes alone.
    """
    readers: list[Linear] = []
    pending = [(root, channels is not None)]
    joined = Joined()
    while pending:
        value, last = pending.pop()
        if value.is_graph_output():
            return f"the normalized value {value.name} is an output of the model"
        for use in value.uses():
            linear = by_node.get(id(use.node))
            if linear is not None and use.idx == 0:
                readers.append(linear)
                continue
            if channels is not None and last and joined.takes(use.node, use.idx):
                pending.extend((output, True) for output in joined.completed(use.node))
                continue
            onward = list(passes_on(use.node, value, channels or 0, last))
            if onward:
                pending.extend(onward)
            elif use.node.op_type not in _READS_SHAPE_ONLY:
                return (
                    f"the normalized value {value.name} also feeds {use.node.name} "
                    f"({use.node.op_type}), which would be divided as well"
                )
    if (node := joined.incomplete()) is not None:
        return (
            f"the normalized value {root.name} is joined with others by {node.name} "
            f"({node.op_type}), which have no gain to fold into"
        )
    return readers
