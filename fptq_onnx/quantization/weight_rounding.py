"""Round the weights of one layer group for the inputs that its linears see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.linears.linears import Linear
from fptq_onnx.numerics.clip_search import quantize_mse
from fptq_onnx.numerics.gptq import quantize_gptq
from fptq_onnx.numerics.group_weights import GroupWeights, dequantize, quantize_rtn
from fptq_onnx.numerics.hessian import Hessian
from fptq_onnx.quantization.layer_errors import LinearErrors
from fptq_onnx.quantization.scheme_search import Rounding, rounding_of
from fptq_onnx.quantization.shared_rounding import SharedRounding
from fptq_onnx.quantization.subgraphs import LayerGroup
from fptq_onnx.scheme.plan import SKIP, LinearPlan
from fptq_onnx.scheme.weight_store import WeightStore

Rows = NDArray[np.float32]
Seen = Hessian | NDArray[np.float64]


def round_layer_group(
    group: LayerGroup,
    weights: Sequence[Rows],
    decided: Sequence[LinearPlan],
    smoothing: NDArray[np.float32],
    look: Callable[[NDArray[np.float32], Rounding], Seen] | None,
    store: WeightStore,
    errors: Mapping[str, LinearErrors],
    shared: SharedRounding,
) -> dict[str, tuple[Rows, Rows]]:
    """Round every linear of a layer group but those in float.

    Args:
        group: which linears.
        weights: float32 [K, N] of each, in their order.
        decided: the plan of each, in the same order.
        smoothing: [K] of their input.
        look: gives what a method needs of the divided and rounded input: Hessian for GPTQ,
            mean squares for the clip search. None rounds to nearest.
        store: receives the weights by name.
        errors: by name; receives those of the weights.
        shared: rounds a weight once that several linears have.

    Returns:
        By name the divided weight as rounded, and what rounding left of what was aimed at; float32
        [K, N] each.

    Raises:
        FptqError: a weight cannot be rounded.
    """
    seen: dict[Rounding, Seen] = {}
    quantized: dict[str, tuple[Rows, Rows]] = {}
    for linear, weight, entry in zip(group.linears, weights, decided, strict=True):
        if entry.scheme == SKIP:
            continue
        rounding = rounding_of(entry)
        if shared.applies(linear, smoothing):
            left = np.empty_like(weight)
            if shared.reuse(linear, entry, store):
                np.subtract(weight, dequantize(store.get(linear.name)), out=left)
            else:
                of_all = shared.moments(linear, rounding)
                store.put(linear.name, _quantized(weight, of_all, entry, linear, left))
            quantized[linear.name] = dequantize(store.get(linear.name)), left
            errors[linear.name].count_weight(*quantized[linear.name])
            continue
        if look is not None and rounding not in seen:
            seen[rounding] = look(smoothing, rounding)
        w = weight * smoothing[:, None]
        left = np.empty_like(w)
        found = _quantized(w, seen.get(rounding), entry, linear, left)
        store.put(linear.name, found)
        quantized[linear.name] = dequantize(found), left
        errors[linear.name].count_weight(*quantized[linear.name])
    return quantized


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
    w: Rows,
    seen: Seen | None,
    entry: LinearPlan,
    linear: Linear,
    left: Rows,
) -> GroupWeights:
    """The weight by the method that what was seen of the inputs serves.

    All of it: GPTQ, unless the inputs are all zero. Mean squares: clip search. Nothing: nearest.
    What rounding leaves of the weight (of GPTQ's target) is put into `left`.
    """
    block, symmetric, bits = entry.block_size, entry.symmetric, entry.weight_bits
    try:
        if isinstance(seen, Hessian) and np.diag(seen.xx).any():
            return quantize_gptq(w, seen, block, symmetric=symmetric, bits=bits, left=left)
        if seen is None:
            found = quantize_rtn(w, block, symmetric=symmetric, bits=bits)
        else:
            importance = seen.diagonal() if isinstance(seen, Hessian) else seen
            found = quantize_mse(w, importance, block, symmetric=symmetric, bits=bits)
        np.subtract(w, dequantize(found), out=left)
        return found
    except (ValueError, np.linalg.LinAlgError) as error:
        raise FptqError(
            f"cannot quantize {linear.weight.name} of {linear.name}: {error}; "
            "try --weight-method mse"
        ) from error
