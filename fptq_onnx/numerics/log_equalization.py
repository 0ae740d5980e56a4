"""Logarithmic activation equalization (LAE), FPTQ section 3.2 (arXiv 2308.15987).

    s_j = max|x_j| / log2(2 + max|x_j|)        x_j' = x_j / s_j        W_j' = s_j * W_j

where j is an input channel. The product is unchanged; the equalized channel's largest magnitude is
log2(2 + max|x_j|), so a channel of 3000 ends near 11.6 while one of 1 ends near 1.6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A channel that calibration (almost) never saw active would get s_j near 0, and one later
# activation there would saturate the whole tensor's int8 range. Below this the channel is left as
# it is.
MIN_CHANNEL_ABSMAX = 1e-5


def equalization_scale(channel_absmax: NDArray[np.floating]) -> NDArray[np.float32]:
    """The smoothing scale s_j of each input channel.

    Args:
        channel_absmax: max|x_j| per input channel, shape [K], finite and not negative.

    Returns:
        s, float32 [K], all positive. Channels whose absmax is below MIN_CHANNEL_ABSMAX get 1.

    Raises:
        ValueError: a value is negative, infinite or NaN.
    """
    absmax = np.asarray(channel_absmax, dtype=np.float64)
    if not np.all(np.isfinite(absmax)) or np.any(absmax < 0):
        raise ValueError("channel maxima must be finite and not negative")
    scale = absmax / np.log2(2.0 + absmax)
    return np.where(absmax < MIN_CHANNEL_ABSMAX, 1.0, scale).astype(np.float32)


def equalized_absmax(channel_absmax: NDArray[np.floating], scale: NDArray[np.float32]) -> float:
    """The largest magnitude of the whole activation after division by `scale` (shapes [K])."""
    if len(channel_absmax) == 0:
        return 0.0
    return float(np.max(np.asarray(channel_absmax, dtype=np.float64) / scale.astype(np.float64)))
