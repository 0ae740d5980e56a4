"""The reference of fptq::MatMulW4A8 and MatMulW8A8: what each kernel must compute, to the last bit.

For row m, column n and groups g in ascending order:

    acc[g]  = sum over k in group g of codes[k, n] * x8[m, k]                  exact integers
    rows[g] = sum over k in group g of x8[m, k]                                exact integers
    y       = 0
    y       = fma(float32(acc[g] - zero[g, n] * rows[g]), scale[g, n], y)      for each g
    out     = fma(y, row_scale[m], bias[n]), or y * row_scale[m] without bias

fma rounds once. float32(integer) rounds half to even; it is exact for groups of up to 8192
channels (of 8 bits 512), since |acc - zero * rows| <= 15 * 128 * 8192 < 2**24.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.group_weights import GroupWeights, group_length


def fma(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """float32 a * b + c rounded once, for broadcastable arrays.

    The product of two float32 is exact in float64. The sum is rounded to odd there, which makes the
    second rounding (to float32) correct because 53 >= 2 * 24 + 2 (Boldo and Melquiond, 2008).
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    product, addend = np.broadcast_arrays(product, addend)
    total = product + addend
    with np.errstate(invalid="ignore"):
        virtual = total - product
        error = (product - (total - virtual)) + (
            addend - virtual
        )  # two-sum: total + error is exact
    bits = total.view(np.int64).copy()
    inexact_even = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    towards_zero = (error < 0) == (total > 0)
    bits += np.where(inexact_even, np.where(towards_zero, -1, 1), 0)
    with np.errstate(over="ignore", invalid="ignore"):
        return bits.view(np.float64).astype(np.float32)


def integer_parts(
    x8: NDArray[np.int8], weights: GroupWeights
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The exact integers: acc [G, M, N] and activation sums rows [G, M]."""
    k, n = weights.codes.shape
    length = group_length(k, weights.block_size)
    groups = weights.scales.shape[0]
    acc = np.empty((groups, x8.shape[0], n), np.int64)
    rows = np.empty((groups, x8.shape[0]), np.int64)
    for g in range(groups):
        part = slice(g * length, min((g + 1) * length, k))
        # float64 holds these integers exactly (below 2**53) and multiplies with BLAS.
        x = x8[:, part].astype(np.float64)
        acc[g] = (x @ weights.codes[part].astype(np.float64)).astype(np.int64)
        rows[g] = x8[:, part].sum(axis=1, dtype=np.int64)
    return acc, rows


def matmul_w4a8(
    x8: NDArray[np.int8],
    row_scale: NDArray[np.float32],
    weights: GroupWeights,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Multiply quantized activations by quantized weights.

    Args:
        x8: int8 [M, K] codes.
        row_scale: float32 [M], from quantize_static or quantize_per_token.
        weights: [K, N], of 4 or 8 bits.
        bias: float32 [N], or None.

    Returns:
        float32 [M, N].
    """
    acc, rows = integer_parts(x8, weights)
    groups, m, n = acc.shape
    y = np.zeros((m, n), np.float32)
    for g in range(groups):
        if weights.zero_points is None:
            zero = np.full(n, weights.middle, np.int64)
        else:
            zero = weights.zero_points[g].astype(np.int64)
        centred = (acc[g] - rows[g][:, None] * zero[None, :]).astype(np.float32)
        y = fma(centred, weights.scales[g][None, :], y)
    if bias is None:
        return (y * row_scale[:, None]).astype(np.float32)
    return fma(y, row_scale[:, None], bias[None, :])
