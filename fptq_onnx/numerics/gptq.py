"""GPTQ in groups, and beyond: codes and scales that minimize a linear's output error.

    minimize    E || x W - x8 W4 ||^2       over codes and scales of W4

x is the input in the float model, x8 what the quantized linear sees: rounded to int8, after all
quantized layers before it. Steps, all exact or descending in that error:

1. target: T = (x8^T x8)^-1 x8^T x W, the float weights that do best on x8 (GPTAQ, arXiv 2504.02692,
   has the same objective); without the cross moments T = W. From here on the error is
   tr((T - W4)^T H (T - W4)), H = x8^T x8 plus damping.
2. grid: one scale per group from the clip search, weighted by diag(H); groups are fixed before any
   reordering ("static groups").
3. codes: rows in order of falling diag(H), each rounded after the best correction for the errors of
   all rows before it (GPTQ, arXiv 2210.17323).
4. refinement: scales by least squares given the codes, codes by coordinate descent given the scales
   (QuantEase, arXiv 2309.01885), in turn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.clip_search import as_weights, round_codes, search_grid
from fptq_onnx.numerics.group_weights import (
    GroupWeights,
    check_matrix,
    group_count,
    group_length,
)
from fptq_onnx.numerics.second_moments import SecondMoments
from fptq_onnx.numerics.upper_factor import factor_upper, solve_factored

DAMPING = 0.03  # share of the mean of diag(H) that is added to it
ROUNDS = 3  # of refinement
_DESCENTS = 3  # passes over all codes in a round
_BLOCK = 64  # rows whose corrections are applied one by one, before a matrix product does the rest


def quantize_gptq(
    w: NDArray[np.float32],
    moments: SecondMoments,
    block_size: int,
    *,
    symmetric: bool = True,
    bits: int = 4,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
) -> GroupWeights:
    """Quantize a weight for the inputs it meets.

    Memory beyond the arguments: one more [K, K] in the moments' type, and three [K, N] float32.

    Args:
        w: float32 [K, N], finite.
        moments: of its K inputs, at least one token.
        block_size: input channels per group, or -1 for one group.
        symmetric: zero point fixed in the middle, or one zero point per group.
        bits: 4 or 8.
        damping: added to the diagonal, as a share of its mean; channels that are always 0 need it.
        rounds: of refinement; 0 is plain GPTQ.

    Raises:
        ValueError: see `quantize_rtn`; or the moments have another size, no token, or describe
            inputs that are all zero; or damping is not positive.
        numpy.linalg.LinAlgError: H is singular even with damping.
    """
    check_matrix(w, block_size, bits)
    k = len(w)
    if moments.xx.shape != (k, k):
        raise ValueError(f"moments of {moments.xx.shape[0]} channels for a weight of {k}")
    if moments.tokens < 1 or damping <= 0:
        raise ValueError("GPTQ needs at least one token and a positive damping")
    diagonal = np.diag(moments.xx)
    added = damping * float(diagonal.mean())
    if not added > 0:
        raise ValueError("the inputs are zero on all calibration data")
    order = np.argsort(-diagonal, kind="stable")
    factor = moments.xx[np.ix_(order, order)]
    factor[np.diag_indices(k)] += added
    factor_upper(factor)
    target = _target(w, moments, factor, order, added)
    importance = diagonal + added
    scales, zeros = search_grid(target, importance, block_size, symmetric=symmetric, bits=bits)
    group = np.arange(k) // group_length(k, block_size)
    factor /= np.diag(factor).copy()
    codes = _round_with_feedback(
        target, factor.astype(np.float32), order, scales, zeros, group, bits
    )
    del factor
    if rounds:
        h = moments.xx.astype(np.float32)
        h[np.diag_indices(k)] += np.float32(added)
        error = target - (codes - zeros[group]) * scales[group]
        for _ in range(rounds):
            _refit_scales(h, codes, scales, zeros, error, block_size)
            _descend(h, codes, scales, zeros, error, group, bits)
    return as_weights(
        codes.astype(np.uint8), scales, zeros, block_size, symmetric=symmetric, bits=bits
    )


def _target(
    w: NDArray[np.float32],
    moments: SecondMoments,
    factor: NDArray[np.floating],
    order: NDArray[np.intp],
    added: float,
) -> NDArray[np.float32]:
    """W + H^-1 (x8^T x - x8^T x8) W, in float32; damping pulls it towards W."""
    if moments.x_float is None:
        return w.astype(np.float32)
    difference = moments.x_float @ w.astype(moments.xx.dtype)
    difference -= moments.xx @ w.astype(moments.xx.dtype)
    difference = difference[order]
    solve_factored(factor, difference)
    target = w.astype(np.float32)
    target[order] += difference.astype(np.float32)
    return target


def _round_with_feedback(
    target: NDArray[np.float32],
    feedback: NDArray[np.float32],
    order: NDArray[np.intp],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    group: NDArray[np.intp],
    bits: int,
) -> NDArray[np.float32]:
    """Step 3: codes as float32 whole numbers [K, N]."""
    k = len(target)
    error = target[order]  # rows not yet rounded; behind them, what rounding left
    codes = np.empty_like(target)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        block = error[start:stop].copy()
        if start > 0:
            block += feedback[:start, start:stop].T @ error[:start]
        for row in range(start, stop):
            g = group[order[row]]
            code = round_codes(block[row - start], scales[g], zeros[g], bits)
            codes[order[row]] = code
            error[row] -= (code - zeros[g]) * scales[g]
            if row + 1 < stop:
                rest = feedback[row, row + 1 : stop]
                block[row - start + 1 :] += rest[:, None] * error[row]
    return codes


def _refit_scales(
    h: NDArray[np.float32],
    codes: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    error: NDArray[np.float32],
    block_size: int,
) -> None:
    """Least squares for one group's scales after the other, codes fixed, in place.

    The error is quadratic in a scale: its change is q^T H e / q^T H q.
    """
    k = len(codes)
    length = group_length(k, block_size)
    for _ in range(2):
        for g in range(group_count(k, block_size)):
            rows = slice(g * length, min((g + 1) * length, k))
            q = codes[rows] - zeros[g]
            above = (q * (h[rows] @ error)).sum(axis=0)
            below = (q * (h[rows, rows] @ q)).sum(axis=0)
            change = np.where(below > 0, above / np.where(below > 0, below, 1), 0)
            # A scale that would vanish or change its sign stays: its codes are at fault.
            change = np.where(scales[g] + change > 0.5 * scales[g], change, 0).astype(np.float32)
            scales[g] += change
            error[rows] -= q * change


def _descend(
    h: NDArray[np.float32],
    codes: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    error: NDArray[np.float32],
    group: NDArray[np.intp],
    bits: int,
) -> None:
    """Each code anew, the best one given all others, in place; until nothing changes."""
    k = len(codes)
    for _ in range(_DESCENTS):
        changed = False
        for start in range(0, k, _BLOCK):
            stop = min(start + _BLOCK, k)
            gradient = h[start:stop] @ error
            for row in range(start, stop):
                scale, zero = scales[group[row]], zeros[group[row]]
                wish = (codes[row] - zero) * scale + gradient[row - start] / h[row, row]
                code = round_codes(wish, scale, zero, bits)
                step = (code - codes[row]) * scale
                if step.any():
                    changed = True
                    codes[row] = code
                    error[row] -= step
                    gradient -= h[start:stop, row][:, None] * step
        if not changed:
            return
