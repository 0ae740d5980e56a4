"""What stays in floats in a model, and how much of it: so that a size is no surprise.

Scales and zero points of what is quantized are part of the codes, not floats that stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.linears.linears import MATMUL_LIKE, LinearScan
from fptq_onnx.passes.quantize_embeddings import SCALES, are_tokens, find_embeddings
from fptq_onnx.progress import human_bytes
from fptq_onnx.scheme.config import Config
from fptq_onnx.scheme.plan import SKIP, Plan

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_SHARE = 0.01  # of the file, above which a kind is told of
_SMALLEST = 1024  # bytes of a tensor that is looked at
_VIEWS = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice",
          "Split", "Concat")  # fmt: skip
_NONE = ""
EMBEDDING = "embedding"
# By op; "" is part of something quantized. What comes first here names a tensor of several readers.
_KINDS = {
    "MatMulW4A8": _NONE, "MatMulW8A8": _NONE, "MatMulNBits": _NONE, "GatherBlockQuantized": _NONE,
    "DequantizeLinear": _NONE, "QuantizeLinear": _NONE, "QMoE": _NONE,
    **dict.fromkeys(MATMUL_LIKE, "weight of linears"), "Einsum": "weight of Einsum",
    "MoE": "stack of experts", "Conv": "weight of convolutions",
    "ConvTranspose": "weight of convolutions", "CausalConvWithState": "weight of convolutions",
    "LSTM": "weight of recurrent layers", "GRU": "weight of recurrent layers",
    "RNN": "weight of recurrent layers",
    "GroupQueryAttention": "table of rotary angles", "RotaryEmbedding": "table of rotary angles",
}  # fmt: skip


@dataclass(frozen=True)
class FloatTensor:
    """One tensor that stays in floats.

    name: of the initializer.
    kind: what it is, such as 'embedding' or 'weight of convolutions'.
    bytes: of its data.
    """

    name: str
    kind: str
    bytes: int


def float_tensors(model: ir.Model, leaving: Collection[int] = ()) -> list[FloatTensor]:
    """The floats of a model, the largest first.

    Args:
        model: any.
        leaving: ids of nodes that are not counted as readers: those to be quantized.
    """
    found = [
        FloatTensor(value.name or "", kind, tensor.nbytes)
        for value, tensor in _tensors(model)
        if tensor.dtype in _FLOATS and tensor.nbytes >= _SMALLEST
        if (kind := _kind(value, leaving)) is not None and SCALES not in value.meta
    ]
    return sorted(found, key=lambda tensor: -tensor.bytes)


def all_bytes(model: ir.Model) -> int:
    """Bytes of all tensors of a model, which is what its files hold but for the graph."""
    return sum(tensor.nbytes for _, tensor in _tensors(model))


def float_notes(found: Sequence[FloatTensor], total: int) -> tuple[str, ...]:
    """One sentence about what is more than 1 % of a file; none where nothing is.

    Args:
        found: by float_tensors.
        total: bytes of the file.
    """
    kinds: dict[str, list[FloatTensor]] = {}
    for tensor in found:
        kinds.setdefault(tensor.kind, []).append(tensor)
    sizes = {kind: sum(tensor.bytes for tensor in some) for kind, some in kinds.items()}
    told = [kind for kind in sorted(sizes, key=lambda k: -sizes[k]) if sizes[kind] > _SHARE * total]
    if not told:
        return ()
    parts = ", ".join(f"{_named(kind, kinds[kind])} ({human_bytes(sizes[kind])})" for kind in told)
    whole = sum(sizes[kind] for kind in told)
    return (f"{human_bytes(whole)} stay float: {parts}, of {human_bytes(total)} in all",)


def _named(kind: str, some: Sequence[FloatTensor]) -> str:
    """'the embedding wte', '3 tables of rotary angles such as cos_cache'."""
    if len(some) == 1:
        return f"the {kind} {some[0].name}"
    noun, *rest = kind.split(" ", 1)
    noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{len(some)} {' '.join([noun, *rest])} such as {some[0].name}"


def expected_floats(
    model: ir.Model, scan: LinearScan, plan: Plan, config: Config, codes: float
) -> tuple[str, ...]:
    """The same sentence before anything is quantized.

    Args:
        model: the float model, normalized.
        scan: its linears.
        plan: the decisions.
        config: what else is quantized.
        codes: bytes that the quantized linears will have.
    """
    if not config.quantize:
        return ()
    schemes = {entry.name: entry.scheme for entry in plan.linears}
    leaving = {id(linear.nodes[0]) for linear in scan.linears if schemes[linear.name] != SKIP}
    if config.embedding_bits != 32:
        for table in find_embeddings(model, leaving):
            if not table.obstacle:
                leaving |= {id(node) for node in table.lookups}
                codes += (
                    table.constant.shape[0] * table.constant.shape[1] * config.embedding_bits / 8
                )
    found = float_tensors(model, leaving)
    return float_notes(found, int(codes) + sum(tensor.bytes for tensor in found))


def _tensors(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING:
                yield value, value.const_value
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
                yield node.outputs[0], attribute.as_tensor()


def _kind(value: ir.Value, leaving: Collection[int]) -> str | None:
    """What a tensor is, as its readers tell; None where none is left, or it is a scale."""
    kinds = set()
    pending, seen = [value], {id(value)}
    while pending:
        for use in pending.pop().uses():
            node = use.node
            if id(node) in leaving:
                continue
            if node.op_type in _VIEWS and use.idx == 0:
                for output in node.outputs:
                    if id(output) not in seen:
                        seen.add(id(output))
                        pending.append(output)
            else:
                kinds.add(_read_as(node, use.idx))
    kinds.discard(_NONE)
    if not kinds:
        return "output" if value.is_graph_output() else None
    order = [EMBEDDING, *_KINDS.values()]
    return min(kinds, key=lambda kind: (order.index(kind) if kind in order else len(order), kind))


def _read_as(node: ir.Node, index: int) -> str:
    if node.op_type == "Gather" and index == 0:
        return EMBEDDING if are_tokens(node.inputs[1]) else "table"
    if node.op_type.endswith("Normalization"):
        return "gain of norms"
    return _KINDS.get(node.op_type, f"tensor read by {node.op_type}")
