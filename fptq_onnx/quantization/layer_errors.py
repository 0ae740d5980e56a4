"""How far a quantized linear is from the float one, summed up batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


@dataclass
class Ratio:
    """Sums of squares of a signal and of an error."""

    signal: float = 0.0
    error: float = 0.0

    def add(self, wanted: NDArray[np.floating], got: NDArray[np.floating]) -> None:
        """Add arrays of one shape."""
        self.signal += float(np.square(wanted, dtype=np.float64).sum())
        self.error += float(np.square(wanted - got, dtype=np.float64).sum())

    @property
    def decibels(self) -> float:
        """Signal to quantization noise ratio; infinite without any error."""
        if self.error == 0:
            return math.inf
        if self.signal == 0:
            return -math.inf
        return 10 * (math.log10(self.signal) - math.log10(self.error))


class LinearErrors:
    """SQNR of one linear's input, weight and output.

    Local: what quantizing this linear does (of the output on one token in four). Total: with
    everything before it quantized as well.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name, self.path = name, path
        self.input_local, self.input_total = Ratio(), Ratio()
        self.output_local, self.output_total = Ratio(), Ratio()
        self.weight = Ratio()

    def count_weight(self, rounded: Rows, left: Rows) -> None:
        """Add the weight [K, N]: as rounded, and what rounding left of it."""
        self.weight.add(rounded + left, rounded)

    def to_dict(self) -> dict[str, object]:
        """Plain data, decibels; None stands for no error at all, or an error where no signal is."""
        rows = {
            "input_local": self.input_local,
            "input_total": self.input_total,
            "weight": self.weight,
            "output_local": self.output_local,
            "output_total": self.output_total,
        }
        found: dict[str, object] = {"name": self.name, "path": self.path}
        for key, ratio in rows.items():
            value = ratio.decibels
            found[f"{key}_sqnr_db"] = value if math.isfinite(value) else None
        return found
