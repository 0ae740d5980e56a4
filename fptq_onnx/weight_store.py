"""Quantized weights on disk between quantizing and writing, so that memory holds one at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.int4 import Int4Weights


class WeightStore:
    """int4 weights by linear name, kept as two codes a byte in a work folder."""

    def __init__(self, folder: Path):
        """Use `folder` (made if missing); `remove` deletes it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._index: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def put(self, name: str, weights: Int4Weights) -> None:
        """Write one linear's weights.

        Raises:
            OSError: the disk is full or not writable.
        """
        index = self._index.setdefault(name, len(self._index))
        codes = weights.codes
        low, high = codes[0::2], codes[1::2]
        pairs = low.copy()
        pairs[: high.shape[0]] |= high << 4
        arrays: dict[str, NDArray[np.generic]] = {
            "pairs": pairs,
            "scales": weights.scales,
            "about": np.array([codes.shape[0], weights.block_size], np.int64),
        }
        if weights.zero_points is not None:
            arrays["zero_points"] = weights.zero_points
        with open(self._folder / f"{index}.npz", "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def get(self, name: str) -> Int4Weights:
        """Read one linear's weights back, exactly as put."""
        with np.load(self._folder / f"{self._index[name]}.npz") as data:
            k, block_size = (int(item) for item in data["about"])
            pairs = data["pairs"]
            codes = np.empty((k, pairs.shape[1]), np.uint8)
            codes[0::2] = pairs & 15
            codes[1::2] = pairs[: k // 2] >> 4
            zero_points = data["zero_points"] if "zero_points" in data else None
            return Int4Weights(codes, data["scales"], zero_points, block_size)

    def remove(self) -> None:
        """Delete the folder with everything in it."""
        shutil.rmtree(self._folder)
