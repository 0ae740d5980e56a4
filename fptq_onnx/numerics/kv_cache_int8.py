"""int8 codes of cached keys and values, a scale for every channel of every head.

Keys have channels that are always large; a scale of their own keeps the others precise (KIVI,
arXiv 2402.02750, quantizes keys by channel for that reason). Codes are those of ONNX Runtime's
GroupQueryAttention with k_quant_type and v_quant_type PER_CHANNEL, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def cache_scales(absmax: NDArray[np.floating]) -> Float32:
    """The scale of each channel.

    Args:
        absmax: largest magnitude seen, [..., size]. A channel that was always 0 gets scale 1.
    """
    scales = absmax.astype(np.float32) / np.float32(127)
    return np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))


def encode_cache(x: Float32, scales: Float32) -> NDArray[np.int8]:
    """round(x / scale), half to even, saturating; NaN becomes 127.

    The product with the rounded reciprocal decides, not the quotient.

    Args:
        x: [..., size].
        scales: positive, broadcast to x.
    """
    scaled = x.astype(np.float32) * (np.float32(1) / scales)
    limited = np.maximum(np.where(scaled < 127, scaled, np.float32(127)), np.float32(-128))
    return np.rint(limited).astype(np.int8)
