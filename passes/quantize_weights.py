"""Quantize the weight of every planned linear to 4 or 8 bits, one at a time, into a store.

W [K, N] (already equalized)  ->  codes, scales [G, N], zero points
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import find_linears
from fptq_onnx.graph.mapped_pages import forget_pages
from fptq_onnx.numerics.group_weights import quantize_rtn
from fptq_onnx.scheme.plan import SKIP, LinearPlan, Plan
from fptq_onnx.scheme.weight_store import WeightStore

Tracker = Callable[[Iterable[LinearPlan], int], Iterator[LinearPlan]]


def quantize_weights(
    model: ir.Model, plan: Plan, store: WeightStore, track: Tracker = lambda items, _: iter(items)
) -> None:
    """Quantize the weights; the model itself does not change.

    Args:
        model: the equalized model.
        plan: entries that are not float are quantized with their own bits, block_size and symmetry.
        store: receives each linear's GroupWeights under its name.
        track: wraps the iteration to show progress; gets the entries and their number.

    Raises:
        FptqError: a weight holds NaN or infinity.
    """
    scan = find_linears(model)
    linears = scan.by_name()
    done: dict[tuple[object, ...], str] = {}
    entries = [entry for entry in plan.linears if entry.scheme != SKIP]
    for entry in track(entries, len(entries)):
        linear = linears[entry.name]
        form = (entry.block_size, entry.symmetric, entry.weight_bits)
        first = done.setdefault((scan.shared.get(entry.name, entry.name), *form), entry.name)
        if first != entry.name:
            store.share(entry.name, first)
            continue
        try:
            weights = quantize_rtn(
                linear.weight.load(),
                entry.block_size,
                symmetric=entry.symmetric,
                bits=entry.weight_bits,
            )
        except ValueError as error:
            raise FptqError(
                f"cannot quantize {linear.weight.name} of {entry.name}: {error}"
            ) from error
        store.put(entry.name, weights)
        forget_pages(linear.weight.sources)
