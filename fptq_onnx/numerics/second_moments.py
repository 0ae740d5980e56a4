"""What GPTQ knows of a linear's input: sums of products of channels over tokens.

    xx       = sum over tokens of x8^T x8     x8: the input the quantized linear really sees
    x_float  = sum over tokens of x8^T x      x: the input it has in the float model

Sums add: moments of two sets of tokens merge into those of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Up to this many channels the sums are float64; beyond it their size matters more.
_FLOAT64_CHANNELS = 4096


@dataclass
class SecondMoments:
    """Sums over `tokens` tokens; x_float is None where both inputs are taken to be the same."""

    xx: NDArray[np.floating]
    x_float: NDArray[np.floating] | None
    tokens: int = 0

    @staticmethod
    def empty(channels: int, *, with_float: bool = True) -> SecondMoments:
        """No token yet."""
        dtype = np.float64 if channels <= _FLOAT64_CHANNELS else np.float32
        xx = np.zeros((channels, channels), dtype)
        return SecondMoments(xx, np.zeros_like(xx) if with_float else None)

    def add(
        self,
        x8: NDArray[np.float32],
        x: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Add tokens.

        Args:
            x8: float32 [tokens, K], the input as the quantized linear sees it, dequantized.
            x: the same tokens in the float model; needed where x_float is kept.
            weights: [tokens], what each token counts; all 1 where None.

        Raises:
            ValueError: a value is not finite, or x is missing.
        """
        if not np.isfinite(x8).all() or (x is not None and not np.isfinite(x).all()):
            raise ValueError("the activations hold NaN or infinity")
        left = x8 if weights is None else x8 * weights[:, None]
        if self.x_float is not None:
            if x is None:
                raise ValueError("the float input is missing")
            self.x_float += left.T @ x
        self.xx += left.T @ x8
        self.tokens += len(x8)

    def merged(self, other: SecondMoments) -> SecondMoments:
        """The moments over both sets of tokens."""
        x_float = None
        if self.x_float is not None or other.x_float is not None:
            x_float = self._cross() + other._cross()
        return SecondMoments(self.xx + other.xx, x_float, self.tokens + other.tokens)

    def _cross(self) -> NDArray[np.floating]:
        return self.xx if self.x_float is None else self.x_float

    def diagonal(self) -> NDArray[np.floating]:
        """E[x8_k^2] per channel [K]; 0 before any token."""
        return np.diag(self.xx) / max(self.tokens, 1)
