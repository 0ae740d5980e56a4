"""Scales that clip: per group, the range that costs least, errors counted by their inputs.

    minimize over r    sum over k in the group of importance_k (w_k - rounded(w_k; r * range))^2

With importance = E[x_k^2] this is the output error of the group, were its inputs uncorrelated. A
range below max|w| clips the few largest weights so that all others are finer. All codes are used,
also the -8 that a range up to max|w| leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.group_weights import (
    GroupWeights,
    check_matrix,
    group_count,
    group_length,
    half_scales,
    middle,
)

# Shares of the group's full range that are tried for 4 bits; 8 bits have nothing to gain.
RATIOS = tuple(float(ratio) for ratio in np.linspace(1.0, 0.6, 21))
_TINY = np.float32(np.finfo(np.float32).tiny)
_COLUMN_CHUNK = 256


def search_grid(
    w: NDArray[np.float32],
    importance: NDArray[np.floating],
    block_size: int,
    *,
    symmetric: bool = True,
    bits: int = 4,
    ratios: Sequence[float] = RATIOS,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scale and zero point of every group.

    Args:
        w: float32 [K, N], finite.
        importance: [K], not negative: what an error of one in a weight of row k costs.
        block_size: input channels per group, or -1 for one group.
        symmetric: zero point fixed in the middle.
        bits: 4 or 8.
        ratios: shares of the full range to try, the first wins ties.

    Returns:
        scales and zero points, float32 [G, N] each; scales are those of `half_scales`, zero points
        whole numbers.

    Raises:
        ValueError: see `quantize_rtn`; or importance has another length or is negative or NaN.
    """
    check_matrix(w, block_size, bits)
    k, n = w.shape
    if importance.shape != (k,) or not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("importance must be one finite number, not negative, per input channel")
    length, groups = group_length(k, block_size), group_count(k, block_size)
    scales = np.empty((groups, n), np.float32)
    zeros = np.empty((groups, n), np.float32)
    tried = ratios if bits == 4 else ratios[:1]
    for g in range(groups):
        rows = slice(g * length, min((g + 1) * length, k))
        top = importance[rows].max()
        # A dead group: nothing will tell, treat its rows alike.
        share = importance[rows] / top if top > 0 else np.ones_like(importance[rows])
        cost: NDArray[np.float32] = share.astype(np.float32)
        for start in range(0, n, _COLUMN_CHUNK):
            columns = slice(start, min(start + _COLUMN_CHUNK, n))
            scale, zero = _best(w[rows, columns], cost, symmetric, bits, tried)
            scales[g, columns], zeros[g, columns] = scale, zero
    return scales, zeros


def quantize_mse(
    w: NDArray[np.float32],
    importance: NDArray[np.floating],
    block_size: int,
    *,
    symmetric: bool = True,
    bits: int = 4,
) -> GroupWeights:
    """Round to nearest on the grid of `search_grid`; arguments and errors as there."""
    scales, zeros = search_grid(w, importance, block_size, symmetric=symmetric, bits=bits)
    length = group_length(w.shape[0], block_size)
    codes = np.empty(w.shape, np.uint8)
    for g in range(len(scales)):
        rows = slice(g * length, (g + 1) * length)
        codes[rows] = round_codes(w[rows], scales[g], zeros[g], bits)
    return as_weights(codes, scales, zeros, block_size, symmetric=symmetric, bits=bits)


def round_codes(
    w: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    bits: int,
) -> NDArray[np.float32]:
    """The nearest codes, float32 whole numbers of w's shape; scale and zero [N]."""
    codes: NDArray[np.float32] = np.rint(w / scale)
    codes += zero
    return np.clip(codes, 0, (1 << bits) - 1, out=codes)


def as_weights(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    block_size: int,
    *,
    symmetric: bool,
    bits: int,
) -> GroupWeights:
    """Codes on a grid of `search_grid` as GroupWeights."""
    return GroupWeights(
        codes, scales, None if symmetric else zeros.astype(np.uint8), block_size, bits
    )


def _best(
    block: NDArray[np.float32],
    cost: NDArray[np.float32],
    symmetric: bool,
    bits: int,
    ratios: Sequence[float],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero [N] of one group."""
    steps = np.float32((1 << bits) - 1)
    half = np.float32(middle(bits))
    low = np.minimum(block.min(axis=0), 0)
    high = np.maximum(block.max(axis=0), 0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weight holds NaN or infinity")
    best = best_scale = best_zero = np.empty(0, np.float32)
    for index, ratio in enumerate(np.asarray(ratios, np.float32)):
        if symmetric:
            full = np.maximum(-low, high) / (half - 1)
            zero = np.full_like(full, half)
        else:
            full = high / steps - low / steps
            with np.errstate(invalid="ignore", divide="ignore"):
                zero = np.rint(np.nan_to_num(-low / half_scales(full)))
            zero = np.clip(zero, 0, steps).astype(np.float32)
        scale = (full * ratio).astype(np.float32)
        scale = half_scales(np.where(scale < _TINY, np.float32(1), scale))
        error = block - (round_codes(block, scale, zero, bits) - zero) * scale
        with np.errstate(over="ignore"):  # errors of 1e19: the full range then wins
            total = cost @ np.square(error, out=error)
        if index == 0:
            best, best_scale, best_zero = total, scale, zero
            continue
        better = total < best
        best = np.where(better, total, best)
        best_scale = np.where(better, scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
    return best_scale, best_zero
