"""Quantization of weights to 4 or 8 bits in groups along the input dimension.

A weight matrix W [K, N] is cut into groups of `block_size` consecutive input channels per output
column. Each group has one scale and, when asymmetric, one zero point:

    W ~= (code - zero_point) * scale        code, zero_point in 0..15 (of 8 bits 0..255)

Symmetric groups have zero point 8 (of 8 bits 128). The last group may be shorter when block_size
does not divide K. Scales are rounded to values of float16 (`half_scales`) before codes are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PER_CHANNEL = -1  # block_size that means one group over all of K
BITS = (4, 8)
# Columns handled at once: bounds the float temporaries to a few MB whatever the size of W.
_COLUMN_CHUNK = 256


@dataclass(frozen=True)
class GroupWeights:
    """A weight matrix in 4 or 8 bits.

    codes: uint8 [K, N], values below 2**bits, one per byte.
    scales: float32 [G, N]; float16 holds their values, but for those out of its range.
    zero_points: uint8 [G, N], or None when symmetric (all `middle`).
    block_size: input channels per group, as given (may be -1).
    bits: of a code, 4 or 8.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    block_size: int
    bits: int = 4

    @property
    def middle(self) -> int:
        """The zero point of symmetric groups: 8, of 8 bits 128."""
        return middle(self.bits)


def middle(bits: int) -> int:
    """The zero point of symmetric groups of codes of `bits` bits."""
    return 1 << (bits - 1)


def group_length(k: int, block_size: int) -> int:
    """Input channels per full group: block_size, or all of K for PER_CHANNEL."""
    return k if block_size == PER_CHANNEL else block_size


def group_count(k: int, block_size: int) -> int:
    """Number of groups over K input channels, the short last one included."""
    return -(-k // group_length(k, block_size))


def half_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales as they are used and stored: rounded to float16 where that loses 11 bits at most.

    Args:
        scales: float32, any shape, positive.

    Returns:
        float32 of the same shape. What lies in the normal range of float16, [2**-14, 65504], is
        the nearest float16, ties to even; what lies outside stays.
    """
    half = np.finfo(np.float16)
    fits = (scales >= np.float32(half.tiny)) & (scales <= np.float32(half.max))
    rounded = np.where(fits, scales, np.float32(1)).astype(np.float16).astype(np.float32)
    return np.where(fits, rounded, scales)


def are_half(scales: NDArray[np.float32]) -> bool:
    """Whether all scales lie in the normal range of float16 and are values of it."""
    half = np.finfo(np.float16)
    fits = (scales >= np.float32(half.tiny)) & (scales <= np.float32(half.max))
    return bool(fits.all() and (half_scales(scales) == scales).all())


def check_matrix(w: NDArray[Any], block_size: int, bits: int) -> None:
    """Refuse what no quantizer here takes.

    Raises:
        ValueError: w is empty or not 2-D, block_size is neither positive nor -1, or bits is neither
            4 nor 8.
    """
    if w.ndim != 2 or w.size == 0:
        raise ValueError(f"expected a non-empty [K, N] matrix, got shape {w.shape}")
    if block_size < 1 and block_size != PER_CHANNEL:
        raise ValueError(f"block_size must be positive or -1, got {block_size}")
    if bits not in BITS:
        raise ValueError(f"bits must be 4 or 8, got {bits}")


def quantize_rtn(
    w: NDArray[Any], block_size: int, *, symmetric: bool = True, bits: int = 4
) -> GroupWeights:
    """Round to nearest.

    Symmetric: scale = max|w| / 7 and codes -7..7 (stored plus 8; of 8 bits 127 and 128), so the
    sign of every weight is treated alike. Asymmetric: the range is widened to include 0 so that 0
    stays exact. Scales are those of `half_scales`.

    Args:
        w: [K, N], any float type, finite.
        block_size: a positive number of input channels, or -1 for one group.
        symmetric: zero point fixed in the middle, or one zero point per group.
        bits: 4 or 8.

    Returns:
        Weights with G = ceil(K / block_size) groups.

    Raises:
        ValueError: w is empty, not 2-D or not finite, or block_size is neither positive nor -1,
            or bits is neither 4 nor 8.
    """
    check_matrix(w, block_size, bits)
    k, n = w.shape
    largest = (1 << bits) - 1
    groups = group_count(k, block_size)
    codes = np.empty((k, n), np.uint8)
    scales = np.empty((groups, n), np.float32)
    zero_points = None if symmetric else np.empty((groups, n), np.uint8)
    length = group_length(k, block_size)
    for start in range(0, n, _COLUMN_CHUNK):
        columns = slice(start, min(start + _COLUMN_CHUNK, n))
        for g in range(groups):
            rows = slice(g * length, min((g + 1) * length, k))
            block = np.asarray(w[rows, columns], dtype=np.float32)
            if not np.isfinite(block).all():
                raise ValueError("the weight holds NaN or infinity")
            grid = _symmetric_grid if symmetric else _asymmetric_grid
            scale, zero = grid(block, bits)
            codes[rows, columns] = np.clip(np.rint(block / scale) + zero, 0, largest)
            scales[g, columns] = scale
            if zero_points is not None:
                zero_points[g, columns] = zero
    return GroupWeights(codes, scales, zero_points, block_size, bits)


def dequantize(weights: GroupWeights) -> NDArray[np.float32]:
    """The float32 [K, N] matrix that the weights stand for."""
    k = weights.codes.shape[0]
    group_of_row = np.arange(k) // group_length(k, weights.block_size)
    if weights.zero_points is None:
        zero = np.full(weights.scales.shape, weights.middle, np.int16)
    else:
        zero = weights.zero_points.astype(np.int16)
    centred = weights.codes.astype(np.int16) - zero[group_of_row]
    return (centred.astype(np.float32) * weights.scales[group_of_row]).astype(np.float32)


def _symmetric_grid(
    block: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    scale = _usable(np.abs(block).max(axis=0) / np.float32(middle(bits) - 1))
    return half_scales(scale), np.full(block.shape[1], middle(bits), np.float32)


def _asymmetric_grid(
    block: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    steps = np.float32((1 << bits) - 1)
    low = np.minimum(block.min(axis=0), 0)
    high = np.maximum(block.max(axis=0), 0)
    # The difference of two large values may overflow float32; half of each cannot.
    scale = half_scales(_usable((high / steps) - (low / steps)))
    return scale, np.clip(np.rint(-low / scale), 0, steps).astype(np.float32)


def _usable(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Groups of zeros (or of subnormals) get scale 1: every code is then the zero point."""
    tiny = np.finfo(np.float32).tiny
    return np.where(scale < tiny, np.float32(1), scale).astype(np.float32)
