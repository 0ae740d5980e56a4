"""Where a graph computes attention: what it reads as queries, keys and values, and its result.

    GroupQueryAttention, MultiHeadAttention, Attention, ...   inputs 0, 1, 2; or 0 holds all three
    com.microsoft.Attention, ...                              holds the weights of q, k and v too:
                                                              no linear's output is one of them
    MatMul(q, k) -> scale, mask -> Softmax -> MatMul(p, v)    found from the Softmax, both ways

A softmax without a product of two computed values before it (a router, a vocabulary) is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from fptq_onnx.graph.op_domains import MSFT_DOMAIN, ONNX_DOMAIN, domain_of
from fptq_onnx.graph.walk_back import input_of

PARTS = "qkv"
READS_SHAPE_ONLY = ("Shape", "Size")
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum")
_DOMAINS = (ONNX_DOMAIN, MSFT_DOMAIN)
# They read the residual stream, and weights, where others read queries, keys and values.
_WITH_WEIGHTS = (
    "Attention", "QAttention", "PackedAttention", "LongformerAttention", "DecoderAttention",
    "DecoderMaskedSelfAttention", "QOrderedAttention", "QOrderedLongformerAttention",
)  # fmt: skip


@dataclass
class AttentionCores:
    """All attention of a graph; a core is known by its number.

    slots: (id of a node, position of its input) -> the core, and which of q, k and v it reads.
    results: id of a value -> the core that computes it.
    nodes: ids of the nodes with slots, and of those that hold weights; walks end there.
    """

    slots: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    results: dict[int, int] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=set)

    def add(self, core: int, node: ir.Node, index: int, parts: str) -> None:
        """Enter one input."""
        self.slots[id(node), index] = (core, parts)
        self.nodes.add(id(node))


def find_attention(graph: ir.Graph, linear_nodes: Collection[int]) -> AttentionCores:
    """Find them, in graph order.

    Args:
        graph: the main graph.
        linear_nodes: ids of the nodes that are linears, which no core contains.
    """
    found = AttentionCores()
    count = 0
    for node in graph:
        if domain_of(node) in _DOMAINS and node.op_type.endswith("Attention"):
            _enter_op(found, count, node)
            count += 1
        elif node.op_type == "Softmax" and _enter_softmax(found, count, node, linear_nodes):
            count += 1
    return found


def _enter_op(found: AttentionCores, core: int, node: ir.Node) -> None:
    inside = domain_of(node) == MSFT_DOMAIN and node.op_type in _WITH_WEIGHTS
    packed = input_of(node, 1) is None and input_of(node, 2) is None
    for index, part in enumerate(() if inside else PARTS):
        if input_of(node, index) is not None:
            found.add(core, node, index, PARTS if packed else part)
    found.nodes.add(id(node))
    found.results[id(node.outputs[0])] = core


def _enter_softmax(
    found: AttentionCores, core: int, node: ir.Node, linear_nodes: Collection[int]
) -> bool:
    scores = _first_products(node, _makers, linear_nodes)
    sums = _first_products(node, _readers, linear_nodes)
    if not scores or not sums:
        return False
    for product, _ in scores:  # its last axis, which the softmax is over, is the keys'
        found.add(core, product, 0, "q")
        found.add(core, product, 1, "k")
    for product, index in sums:
        found.add(core, product, 1 - index, "v")
        found.results[id(product.outputs[0])] = core
    return True


def _first_products(
    start: ir.Node,
    neighbours: Callable[[ir.Node], Iterator[tuple[ir.Node, int]]],
    linear_nodes: Collection[int],
) -> list[tuple[ir.Node, int]]:
    """The first products that are no linears in one direction, each with where it is entered."""
    products: dict[int, tuple[ir.Node, int]] = {}
    seen, pending = {id(start)}, [start]
    while pending:
        for node, index in neighbours(pending.pop()):
            if id(node) in seen or id(node) in linear_nodes:
                continue
            seen.add(id(node))
            if node.op_type in _PRODUCTS and index < 2:
                products[id(node)] = (node, index)
            elif node.op_type not in READS_SHAPE_ONLY:
                pending.append(node)
    return list(products.values())


def _makers(node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None:
            yield maker, 0


def _readers(node: ir.Node) -> Iterator[tuple[ir.Node, int]]:
    for value in node.outputs:
        for use in value.uses():
            yield use.node, use.idx
