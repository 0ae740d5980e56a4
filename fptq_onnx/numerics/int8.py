"""int8 quantization of activations: one static scale per tensor, or one scale per token (row).

Symmetric, round half to even, stored range -128..127. The quantizer multiplies by the float32
reciprocal of the scale (a division per element would cost the kernels several percent), so the
reciprocal is part of the definition:

    inv = float32(1) / scale            q = clip(rint(float32(x * inv)), -128, 127)

A row that holds a NaN (or, per-token, an infinity) has no honest int8 form: its codes are 0 and its
scale is NaN, so every output of that row is NaN, as it would be in the float model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INT8_MAX = np.float32(127.0)
FLOAT32_TINY = np.float32(np.finfo(np.float32).tiny)  # smallest normal number


def static_scale(absmax: float) -> np.float32:
    """The per-tensor scale that maps `absmax` to 127; 1 for an all-zero tensor."""
    scale = np.float32(absmax) / INT8_MAX
    return scale if scale >= FLOAT32_TINY else np.float32(1.0)


def quantize_static(
    x: NDArray[np.float32], scale: np.float32
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize rows with one scale for the tensor.

    Args:
        x: float32 [M, K].
        scale: positive, finite, at least FLOAT32_TINY.

    Returns:
        codes int8 [M, K] and the row scales float32 [M]: `scale`, or NaN for a row with a NaN.

    Raises:
        ValueError: the scale is not usable.
    """
    scale = np.float32(scale)
    if not np.isfinite(scale) or scale < FLOAT32_TINY:
        raise ValueError(f"static activation scale must be a positive normal float32, got {scale}")
    broken: NDArray[np.bool_] = np.asarray(np.isnan(x).any(axis=1))
    codes = _round_to_int8(np.where(broken[:, None], np.float32(0), x), np.float32(1.0) / scale)
    return codes, np.where(broken, np.float32(np.nan), scale).astype(np.float32)


def quantize_per_token(
    x: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize each row with its own scale, max|row| / 127.

    Args:
        x: float32 [M, K].

    Returns:
        codes int8 [M, K] and row scales float32 [M]. A row whose scale would be below FLOAT32_TINY
        counts as zero (codes 0, scale 0); a row with a NaN or infinity gets codes 0 and scale NaN.
    """
    if x.shape[1] == 0:
        return np.zeros(x.shape, np.int8), np.zeros(x.shape[0], np.float32)
    absmax = np.abs(x).max(axis=1)  # NumPy's max propagates NaN
    broken = ~np.isfinite(absmax)
    scale = (np.where(broken, np.float32(0), absmax) / INT8_MAX).astype(np.float32)
    empty = scale < FLOAT32_TINY
    inverse = (np.float32(1.0) / np.where(empty, np.float32(1), scale)).astype(np.float32)
    codes = _round_to_int8(np.where((broken | empty)[:, None], np.float32(0), x), inverse[:, None])
    scale = np.where(empty, np.float32(0), scale)
    return codes, np.where(broken, np.float32(np.nan), scale).astype(np.float32)


def _round_to_int8(
    x: NDArray[np.float32], inverse: NDArray[np.float32] | np.float32
) -> NDArray[np.int8]:
    with np.errstate(over="ignore"):  # x / tiny may be infinite: it saturates like any large value
        scaled = np.rint(x * inverse)
    codes: NDArray[np.int8] = np.clip(scaled, -128, 127).astype(np.int8)
    return codes
