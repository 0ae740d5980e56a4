"""Where an equalization folds into a linear instead of a norm: into its columns, and its bias.

    down(silu(gate) * up)        channel j of the product is linear in column j of up, which may be
                                 a part of a wider linear (gate and up in one)
    fc2(relu(fc1))               relu(z / s) = relu(z) / s
    fc2(relu(fc1)^2)             the same with roots: relu(z / sqrt(s))^2 = relu(z)^2 / s
    o(attention(q, k, v))        see value_sites.py

Dividing the activation's channels by s is dividing the columns (and bias) of up, fc1 or v by s:
each output channel has scales of its own, so its 4-bit codes do not even change.

Reshapes keep the order of elements, so they may stand anywhere as long as the last dimension that
enters the product is still up's channels: then the product's is, whatever the gate's shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fptq_onnx.graph.constants import constant_of, scalar_ints
from fptq_onnx.graph.folding.attention_value_sites import Columns, columns_of, value_source
from fptq_onnx.graph.folding.column_spans import picks_others
from fptq_onnx.graph.folding.moved_columns import MovedColumns
from fptq_onnx.graph.folding.norm_sites import passes_through, readers_of
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.graph.op_domains import domain_of
from fptq_onnx.graph.walk_back import WalkBack

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LinearSite:
    """A linear whose columns can take the equalization of a later activation.

    name: of the linear that takes it, the key in plans.
    linears: names of all linears that read the activation.
    n: columns of the linear that takes it.
    spread: the column behind each channel of the activation, int64 [K].
    through_attention: whether the cache holds the divided values.
    squared: whether the activation is the square of what the columns make.
    """

    name: str
    linears: tuple[str, ...]
    n: int
    spread: Columns = field(repr=False)
    through_attention: bool = False
    squared: bool = False

    def tied(self, sizes: Floats) -> Floats:
        """The largest [K] of channels made by the same column, which have one smoothing scale."""
        largest = np.full(self.n, -np.inf)
        np.maximum.at(largest, self.spread, sizes)
        return largest[self.spread]

    def smoothing_scales(self, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """S [K] of the activation as scales [N] of columns; 1 where a column makes no channel."""
        found = np.ones(self.n, np.float32)
        found[self.spread] = np.sqrt(scale) if self.squared else scale
        return found


def find_linear_sites(linears: Sequence[Linear]) -> dict[str, LinearSite]:
    """By name of a linear whose input is a product with another linear's output, the site."""
    by_node = {id(linear.nodes[0]): linear for linear in linears}
    by_output = {id(linear.output): linear for linear in linears}
    moved = MovedColumns()
    found = {}
    for linear in linears:
        site = _site_of(linear, by_node, by_output, moved)
        if site is not None:
            found[linear.name] = site
    return found


def column_scales(
    linears: Sequence[Linear], scales: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Of scales [K] by what takes them, those of columns: [N] by the name of the linear."""
    sites = {site.name: site for site in find_linear_sites(linears).values()}
    return {name: sites[name].smoothing_scales(s) for name, s in scales.items() if name in sites}


def _site_of(
    linear: Linear,
    by_node: Mapping[int, Linear],
    by_output: Mapping[int, Linear],
    moved: MovedColumns,
) -> LinearSite | None:
    value = _before_casts(linear.x)
    root = _squared_source(linear, value, by_output)
    found = root or _elementwise_source(linear, value, by_output)
    columns = np.arange(linear.k)
    attention = found is None
    if found is None:
        part = _part_of_linear(linear, value, by_output)
        traced = part or value_source(linear.x, linear.k, by_output, moved)
        if traced is None:
            return None
        attention = part is None
        found, columns = traced
    readers = readers_of(value, by_node)
    if isinstance(readers, str) or any(reader.k != linear.k for reader in readers):
        return None
    names = tuple(reader.name for reader in readers)
    return LinearSite(found.name, names, found.n, columns, attention, root is not None)


def _elementwise_source(
    linear: Linear, value: ir.Value, by_output: Mapping[int, Linear]
) -> Linear | None:
    """The linear whose output is a factor of the value, or goes through a relu to it."""
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Relu") or domain_of(node) != "":
        return None
    for operand in reversed(node.inputs):
        if operand is None:
            return None
        source = by_output.get(id(_before_casts(operand)))
        if source is None or source.n != linear.k or source.name == linear.name:
            continue
        if _leads_only_to(source.output, node) and _last_size(operand, source) == source.n:
            return source
    return None


def _squared_source(
    linear: Linear, value: ir.Value, by_output: Mapping[int, Linear]
) -> Linear | None:
    """The linear whose output, through a relu or not, is squared to the value."""
    node = value.producer()
    if node is None or domain_of(node) != "" or not _squares(node):
        return None
    root = node.inputs[0]
    if root is None or root.is_graph_output() or any(use.node is not node for use in root.uses()):
        return None
    target, inner = node, _before_casts(root)
    maker = inner.producer()
    if maker is not None and (maker.op_type, maker.domain) == ("Relu", "") and maker.inputs[0]:
        if inner is not root and not _leads_only_to(inner, node):
            return None
        target, root = maker, maker.inputs[0]
        inner = _before_casts(root)
    source = by_output.get(id(inner))
    if source is None or source.n != linear.k or _last_size(root, source) != source.n:
        return None
    if inner is not root or target is not node:
        return source if _leads_only_to(inner, target) else None
    return source


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = constant_of(node.inputs[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.shape in ((), (1,)) and exponent.load().item() == 2


def _part_of_linear(
    linear: Linear, value: ir.Value, by_output: Mapping[int, Linear]
) -> tuple[Linear, Columns] | None:
    """The wider linear of which a factor of the value is some columns, and which ones."""
    node = value.producer()
    if node is None or node.op_type != "Mul" or domain_of(node) != "":
        return None
    for operand in reversed(node.inputs):
        if operand is None or len(operand.uses()) != 1 or operand.is_graph_output():
            continue
        walk = WalkBack(operand)
        found = columns_of(walk, by_output)
        if found is None or found[2] != linear.k:
            continue
        source, first, width = found
        if walk.leads_only_here(picks_others(source.n)):
            return source, np.arange(first, first + width, dtype=np.int64)
    return None


def _before_casts(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and passes_through(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _last_size(value: ir.Value, source: Linear) -> int | None:
    """The last dimension of what a linear's output became; None where nothing tells it."""
    node = value.producer()
    if value is source.output or node is None or node.inputs[0] is None:
        return source.n
    if node.op_type in ("Cast", "Identity"):
        return _last_size(node.inputs[0], source)
    if node.op_type == "Reshape":
        sizes = scalar_ints(node.inputs[1])
        if sizes and sizes[-1] > 0:
            return sizes[-1]
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def _leads_only_to(value: ir.Value, target: ir.Node) -> bool:
    """Whether a value feeds nothing but one input of the target, through casts and reshapes."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return False
    node = uses[0].node
    if node is target:
        return True
    return passes_through(node) and uses[0].idx == 0 and _leads_only_to(node.outputs[0], target)
