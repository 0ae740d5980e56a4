"""Where an equalization folds into a linear instead of a norm: up_proj before down_proj.

    down(silu(gate) * up)        channel j of the product is linear in column j of up

Dividing the product's channels by s is dividing the columns (and bias) of up by s: each output
channel of up has scales of its own, so its 4-bit codes do not even change.

Reshapes keep the order of elements, so they may stand anywhere as long as the last dimension that
enters the product is still up's channels: then the product's is, whatever the gate's shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.graph.constants import scalar_ints
from fptq_onnx.graph.fold_sites import passes_through, readers_of
from fptq_onnx.graph.linears import Linear


@dataclass(frozen=True)
class ColumnSite:
    """A linear whose columns can take the equalization of a later activation.

    name: of the linear that takes it, the key in plans.
    linears: names of all linears that read the activation.
    """

    name: str
    linears: tuple[str, ...]


def find_column_sites(linears: Sequence[Linear]) -> dict[str, ColumnSite]:
    """By name of a linear whose input is a product with another linear's output, the site."""
    by_node = {id(linear.nodes[0]): linear for linear in linears}
    by_output = {id(linear.output): linear for linear in linears}
    found = {}
    for linear in linears:
        site = _site_of(linear, by_node, by_output)
        if site is not None:
            found[linear.name] = site
    return found


def _site_of(
    linear: Linear, by_node: Mapping[int, Linear], by_output: Mapping[int, Linear]
) -> ColumnSite | None:
    value = _before_casts(linear.x)
    product = value.producer()
    if product is None or product.op_type != "Mul" or product.domain not in ("", "ai.onnx"):
        return None
    for operand in reversed(product.inputs):
        if operand is None:
            return None
        source = by_output.get(id(_before_casts(operand)))
        if source is None or source.n != linear.k or source.name == linear.name:
            continue
        if not _leads_only_to(source.output, product) or _last_size(operand, source) != source.n:
            continue
        readers = readers_of(value, by_node)
        if isinstance(readers, str) or any(reader.k != linear.k for reader in readers):
            return None
        return ColumnSite(source.name, tuple(reader.name for reader in readers))
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
