"""Round the weights of one layer group for the inputs that its linears see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.numerics.group_weights import GroupWeights, dequantize
from fptq_onnx.numerics.weight_methods import GroupFormat, Seen, quantize_weight
from fptq_onnx.quantization.scheme_search import Rounding, rounding_of
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.scheme.plan import SKIP, LinearPlan
from fptq_onnx.scheme.weight_store import WeightStore

Rows = NDArray[np.float32]


class WeightInputs(Protocol):
    """What rounding asks of a layer group."""

    @property
    def group(self) -> LayerGroup:
        """Its linears."""

    def weight(self, linear: Linear) -> Rows:
        """The float weight [K, N] of one of them."""

    def seen(self, method: str, smoothing: NDArray[np.float32], rounding: Rounding) -> Seen | None:
        """What a method needs of the divided and rounded input; None rounds to nearest."""


def round_layer_group(
    inputs: WeightInputs,
    decided: Sequence[LinearPlan],
    smoothing: NDArray[np.float32],
    method: str,
    store: WeightStore,
    shared: SharedRounding,
    *,
    keep: bool,
) -> dict[str, tuple[Rows, Rows]]:
    """Round every linear of a layer group but those in float, one weight at a time.

    Args:
        inputs: the layer group and what its linears see.
        decided: the plan of each linear, in their order.
        smoothing: [K] of their input.
        method: one of weight_methods.METHODS.
        store: receives the weights by name.
        shared: rounds a weight once that several linears have.
        keep: return the rounded weights; if not, memory holds one at a time.

    Returns:
        By name the divided weight as rounded, and what rounding left of what was aimed at; float32
        [K, N] each. Nothing without `keep`.

    Raises:
        FptqError: a weight cannot be rounded.
    """
    seen: dict[Rounding, Seen | None] = {}
    kept: dict[str, tuple[Rows, Rows]] = {}
    for linear, entry in zip(inputs.group.linears, decided, strict=True):
        if entry.scheme == SKIP:
            continue
        rounding = rounding_of(entry)
        left: Rows | None = None
        if shared.applies(linear, smoothing):
            reused = shared.reuse(linear, entry, store)
            if keep or not reused:
                w = inputs.weight(linear)
                left = np.empty_like(w) if keep else None
            if not reused:
                of_all = shared.moments(linear, rounding)
                store.put(linear.name, _quantized(w, method, of_all, entry, linear, left))
            elif left is not None:
                np.subtract(w, dequantize(store.get(linear.name)), out=left)
        else:
            if rounding not in seen:
                seen[rounding] = inputs.seen(method, smoothing, rounding)
            w = inputs.weight(linear) * smoothing[:, None]
            left = np.empty_like(w) if keep else None
            store.put(linear.name, _quantized(w, method, seen[rounding], entry, linear, left))
        if left is not None:
            kept[linear.name] = dequantize(store.get(linear.name)), left
    return kept


def float_weight(linear: Linear) -> Rows:
    """The weight [K, N], float32.

    Raises:
        FptqError: it holds NaN or infinity.
    """
    w = np.ascontiguousarray(linear.weight.load().astype(np.float32, copy=False))
    if not np.isfinite(w).all():
        raise FptqError(
            f"cannot quantize {linear.weight.name} of {linear.name}: the weight holds NaN or "
            f"infinity"
        )
    return w


def _quantized(
    w: Rows, method: str, seen: Seen | None, entry: LinearPlan, linear: Linear, left: Rows | None
) -> GroupWeights:
    form = GroupFormat(entry.block_size, entry.symmetric, entry.weight_bits)
    try:
        return quantize_weight(w, method, seen, form, left=left)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise FptqError(
            f"cannot quantize {linear.weight.name} of {linear.name}: {error}; "
            "try --weight-method mse"
        ) from error
