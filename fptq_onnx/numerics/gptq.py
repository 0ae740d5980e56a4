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
4. refinement: group after group, its scale by least squares given the codes (the float16 nearest to
   that is no worse than the one before), then its codes by coordinate descent given the scales
   (QuantEase, arXiv 2309.01885); several rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.cholesky import factor_upper, solve_factored
from fptq_onnx.numerics.clip_search import as_weights, round_codes, search_grid
from fptq_onnx.numerics.group_weights import (
    GroupWeights,
    check_matrix,
    group_count,
    group_length,
    half_scales,
)
from fptq_onnx.numerics.hessian import Hessian

DAMPING = 0.03  # share of the mean of diag(H) that is added to it
ROUNDS = 3  # of refinement
_BLOCK = 64  # rows that a matrix product serves at once, before each adds its neighbours' part
# Output columns do not depend on each other: this many numbers of [K, columns] at a time keep the
# temporaries small whatever N is, and a block of rows in the cache.
_CHUNK = 1 << 23
# Weights, and sums of squares of inputs: the largest product of both over 10^5 channels is 1e29.
_HUGE = 1e12

Rows = NDArray[np.float32]


def quantize_gptq(
    w: Rows,
    moments: Hessian,
    block_size: int,
    *,
    symmetric: bool = True,
    bits: int = 4,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
    left: Rows | None = None,
) -> GroupWeights:
    """Quantize a weight for the inputs it meets.

    Memory beyond the arguments and the result: one [K, K] in the moments' type, two more in float32
    where that is float64, and some ten arrays of 32 MB.

    Args:
        w: float32 [K, N], finite.
        moments: of its K inputs, at least one token.
        block_size: input channels per group, or -1 for one group.
        symmetric: zero point fixed in the middle, or one zero point per group.
        bits: 4 or 8.
        damping: added to the diagonal, as a share of its mean; channels that are always 0 need it.
        rounds: of refinement; 0 is plain GPTQ.
        left: float32 [K, N], overwritten with T - W4: what rounding left of the target.

    Raises:
        ValueError: see `quantize_rtn`; or the moments have another size, no token, or describe
            inputs that are all zero; or damping is not positive.
        numpy.linalg.LinAlgError: H is singular even with damping.
    """
    check_matrix(w, block_size, bits)
    k, n = w.shape
    if moments.xx.shape != (k, k):
        raise ValueError(f"moments of {moments.xx.shape[0]} channels for a weight of {k}")
    if moments.tokens < 1 or not damping > 0:
        raise ValueError("GPTQ needs at least one token and a positive damping")
    # Both only where they are huge: products of what is left stay far from the end of float32.
    unit, square = _unit(max(w.max(), -w.min())), _unit(np.diag(moments.xx).max())
    if square != 1:
        cross = moments.x_float
        moments = Hessian(
            moments.xx / square, None if cross is None else cross / square, moments.tokens
        )
    diagonal = np.diag(moments.xx)
    added = damping * float(diagonal.mean())
    if not added > 0:
        raise ValueError("the inputs are zero on all calibration data")
    order = np.argsort(-diagonal, kind="stable")
    factor = moments.xx[np.ix_(order, order)]
    factor[np.diag_indices(k)] += added
    factor_upper(factor)
    factor = factor.astype(np.float32, copy=False)
    h = _Damped(moments.xx.astype(np.float32, copy=False), np.float32(added))
    importance = diagonal + added
    group = np.arange(k) // group_length(k, block_size)
    codes = np.empty((k, n), np.uint8)
    scales = np.empty((group_count(k, block_size), n), np.float32)
    zeros = np.empty_like(scales)
    width = max(1, _CHUNK // k)
    for start in range(0, n, width):
        part = slice(start, min(start + width, n))
        columns = w[:, part] if unit == 1 else w[:, part] / unit
        error = _target(columns, moments, factor, order)  # becomes what rounding leaves of it
        scale, zero = search_grid(error, importance, block_size, symmetric=symmetric, bits=bits)
        code = _round_with_feedback(error, factor, order, scale, zero, group, bits)
        for _ in range(rounds):
            _refine(h, code, scale, zero, error, block_size, bits)
        codes[:, part], scales[:, part], zeros[:, part] = code, scale * unit, zero
        if left is not None:
            np.multiply(error, unit, out=left[:, part])
    return as_weights(codes, scales, zeros, block_size, symmetric=symmetric, bits=bits)


def _unit(largest: np.floating[Any]) -> np.float32:
    """1, or for what is huge a power of two as large: dividing by it changes no digit."""
    return np.float32(2.0 ** (np.frexp(largest)[1] - 1) if largest > _HUGE else 1)


@dataclass(frozen=True)
class _Damped:
    """H = xx + added * identity, float32, without a second copy of xx."""

    xx: Rows
    added: np.float32

    def times(self, rows: slice, e: Rows) -> Rows:
        """The given rows of H e."""
        product: Rows = self.xx[rows] @ e
        product += self.added * e[rows]
        return product

    def within(self, rows: slice, q: Rows) -> Rows:
        """The given rows of H q, where q [rows, columns] is 0 outside of them."""
        product: Rows = self.xx[rows, rows] @ q
        product += self.added * q
        return product


def _target(w: Rows, moments: Hessian, factor: Rows, order: NDArray[np.intp]) -> Rows:
    """W + H^-1 (x8^T x - x8^T x8) W; damping pulls it towards W.

    In float32, but for the difference of the moments: the correction is small beside W.
    """
    target = w.astype(np.float32, order="C")
    if moments.x_float is None:
        return target
    difference = np.empty_like(target)
    for start in range(0, len(w), _BLOCK):
        rows = slice(start, start + _BLOCK)
        between = moments.x_float[rows] - moments.xx[rows]
        np.matmul(between.astype(np.float32, copy=False), target, out=difference[rows])
    difference = difference[order]
    solve_factored(factor, difference)
    target[order] += difference
    return target


def _round_with_feedback(
    error: Rows,
    factor: Rows,
    order: NDArray[np.intp],
    scales: Rows,
    zeros: Rows,
    group: NDArray[np.intp],
    bits: int,
) -> Rows:
    """Step 3: codes as float32 whole numbers [K, N]; error holds the target, then what they leave.

    Row k is rounded after adding the errors of the rows before it, each times R[row, k] / R[k, k].
    """
    k = len(error)
    done = np.empty_like(error)  # errors in the order of rounding
    codes = np.empty_like(error)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        block = factor[:start, start:stop].T @ done[:start]
        for row in range(start, stop):
            channel = order[row]
            g = group[channel]
            wish = factor[start:row, row] @ done[start:row]
            wish += block[row - start]
            wish /= factor[row, row]
            wish += error[channel]
            code = round_codes(wish, scales[g], zeros[g], bits)
            codes[channel] = code
            error[channel] -= (code - zeros[g]) * scales[g]
            done[row] = error[channel]
    return codes


def _refine(
    h: _Damped,
    codes: Rows,
    scales: Rows,
    zeros: Rows,
    error: Rows,
    block_size: int,
    bits: int,
) -> None:
    """Step 4, in place: one group after the other, its scale and then each of its codes anew."""
    k = len(codes)
    length = group_length(k, block_size)
    for g in range(group_count(k, block_size)):
        rows = slice(g * length, min((g + 1) * length, k))
        gradient = h.times(rows, error)
        change = _refit_scale(h, rows, codes[rows] - zeros[g], scales[g], gradient, error)
        scales[g] = half_scales(scales[g] + change)
        _descend(h, rows, codes[rows], scales[g], zeros[g], gradient, error, bits)


def _refit_scale(
    h: _Damped, rows: slice, q: Rows, scale: Rows, gradient: Rows, error: Rows
) -> Rows:
    """Change of a group's scale by least squares, codes fixed; gradient = H e is kept up to date.

    The error is quadratic in the scale: its change is q^T H e / q^T H q.
    """
    above = (q * gradient).sum(axis=0)
    moved = h.within(rows, q)
    below = (q * moved).sum(axis=0)
    change = np.where(below > 0, above / np.where(below > 0, below, 1), 0)
    # A scale that would vanish or change its sign stays: its codes are at fault.
    change = np.where(scale + change > 0.5 * scale, change, 0).astype(np.float32)
    change = half_scales(scale + change) - scale
    error[rows] -= q * change
    moved *= change
    gradient -= moved
    return change


def _descend(
    h: _Damped,
    rows: slice,
    codes: Rows,
    scale: Rows,
    zero: Rows,
    gradient: Rows,
    error: Rows,
    bits: int,
) -> None:
    """Each code of a group anew, the best one given all others; gradient is used up."""
    steps = np.empty_like(gradient)
    for start in range(0, len(codes), _BLOCK):
        stop = min(start + _BLOCK, len(codes))
        for row in range(start, stop):
            at = rows.start + row
            wish = gradient[row]
            wish -= h.xx[at, rows.start + start : at] @ steps[start:row]
            wish /= h.xx[at, at] + h.added
            wish += (codes[row] - zero) * scale
            code = round_codes(wish, scale, zero, bits)
            np.multiply(code - codes[row], scale, out=steps[row])
            codes[row] = code
        after = slice(rows.start + stop, rows.stop)
        gradient[stop:] -= h.xx[after, rows.start + start : rows.start + stop] @ steps[start:stop]
    error[rows] -= steps
