"""Linears that have one weight: the same initializer, or copies of it under other names.

    ALBERT's layers, looped blocks, tied encoders and decoders       one initializer, many MatMuls
    exporters that lose the tie                                      equal bytes under several names

Such a weight is stored once as long as every use of it stays as it is: dividing the input of one of
them would take a weight of its own. What a weight is behind (Transpose, Cast, Reshape) does not
matter, values are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir

from fptq_onnx.graph.constants import Array
from fptq_onnx.graph.mapped_pages import forget_pages

if TYPE_CHECKING:
    from fptq_onnx.graph.column_sites import ColumnSite
    from fptq_onnx.graph.fold_sites import FoldSite
    from fptq_onnx.graph.linears import Linear, LinearScan

Site = TypeVar("Site", bound="FoldSite | ColumnSite | str")

_SAMPLED = 16  # rows and columns that are compared before all of them are
_VIEWS = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


def shared_weights(linears: Sequence[Linear]) -> dict[str, str]:
    """By name of each linear whose weight others have too, the name of the first that has it.

    Weights of zeros alone are not counted: nothing is known by their being equal.

    Args:
        linears: in graph order.
    """
    alike: dict[tuple[object, ...], list[Linear]] = {}
    for linear in linears:
        alike.setdefault((linear.k, linear.n, linear.weight.dtype), []).append(linear)
    found: dict[str, str] = {}
    for some in alike.values():
        if len(some) > 1:
            found.update(_same(some))
    return {linear.name: found[linear.name] for linear in linears if linear.name in found}


def _same(linears: Sequence[Linear]) -> dict[str, str]:
    groups: dict[bytes, list[list[Linear]]] = {}
    for linear in linears:
        sample = _sample(linear.weight.load())
        forget_pages(linear.weight.sources)
        if sample is None:
            continue
        groups_alike = groups.setdefault(sample, [])
        group = next((group for group in groups_alike if _equal(group[0], linear)), None)
        if group is None:
            groups_alike.append([linear])
        else:
            group.append(linear)
    return {
        linear.name: group[0].name
        for several in groups.values()
        for group in several
        if len(group) > 1
        for linear in group
    }


def _sample(w: Array) -> bytes | None:
    """Some of a weight; None where all of it is zeros."""
    rows, columns = (np.linspace(0, size - 1, min(size, _SAMPLED)).astype(int) for size in w.shape)
    some = np.ascontiguousarray(w[np.ix_(rows, columns)])  # of a mapped file only their pages
    return some.tobytes() if some.astype(np.float32).any() or w.any() else None


def _equal(first: Linear, second: Linear) -> bool:
    a, b = first.weight.load(), second.weight.load()
    one_place = a.__array_interface__["data"] == b.__array_interface__["data"]
    if one_place and a.strides == b.strides:
        return True
    same = bool(np.array_equal(a, b))
    forget_pages((*first.weight.sources, *second.weight.sources))
    return same


def fixed_weights(scan: LinearScan, *, quantize: bool) -> dict[str, str]:
    """By name of each linear whose weight has to stay as it is to be stored once, why.

    Args:
        scan: the linears.
        quantize: whether weights become codes; if not, one that is an embedding too has to stay.
    """
    counts = {first: list(scan.shared.values()).count(first) for first in scan.shared.values()}
    found = {
        name: f"{counts[first]} linears have its weight, which is stored once"
        for name, first in scan.shared.items()
    }
    if not quantize:
        for linear in scan.linears:
            reader = _other_reader(linear)
            if reader is not None and linear.name not in found:
                found[linear.name] = (
                    f"its weight is read by {reader.name} ({reader.op_type}) too and stored once"
                )
    return found


def _other_reader(linear: Linear) -> ir.Node | None:
    """What reads a weight beside the linear, through casts and transposes or not."""
    pending = list(linear.weight.sources)
    while pending:
        for use in pending.pop().uses():
            if use.node.op_type in _VIEWS:
                pending.extend(use.node.outputs)
            elif use.node is not linear.nodes[0]:
                return use.node
    return None


def decline_fixed(
    sites: Mapping[str, FoldSite | str], fixed: Mapping[str, str]
) -> dict[str, FoldSite | str]:
    """The same sites; a reason in place of those that need a weight to change that has to stay."""
    found: dict[str, FoldSite | str] = {}
    for name, site in sites.items():
        names = () if isinstance(site, str) else site.linears
        reason = next((fixed[reader] for reader in names if reader in fixed), None)
        found[name] = site if reason is None else reason
    return found


def fixed_column_site(site: ColumnSite, fixed: Mapping[str, str]) -> str | None:
    """Why divisors cannot go into the columns of a linear; None where they can."""
    names = (site.name, *site.linears)
    return next((fixed[name] for name in names if name in fixed), None)
