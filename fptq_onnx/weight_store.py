"""Quantized weights on disk between quantizing and writing, so that memory holds one at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.group_weights import GroupWeights, are_half


class WeightStore:
    """Quantized weights by linear name, in a work folder; codes of 4 bits as two a byte."""

    def __init__(self, folder: Path):
        """Use `folder` (made if missing); `remove` deletes it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._index: dict[str, int] = {}
        self._half: dict[str, bool] = {}
        self._named: list[list[str]] = []  # who has the weights of an index

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def put(self, name: str, weights: GroupWeights) -> None:
        """Write one linear's weights.

        Raises:
            OSError: the disk is full or not writable.
        """
        index = self._own_index(name)
        self._half[name] = are_half(weights.scales)
        codes = weights.codes
        packed = codes
        if weights.bits == 4:
            high = codes[1::2]
            packed = codes[0::2].copy()
            packed[: high.shape[0]] |= high << 4
        arrays: dict[str, NDArray[np.generic]] = {
            "packed": packed,
            "scales": weights.scales,
            "about": np.array([codes.shape[0], weights.block_size, weights.bits], np.int64),
        }
        if weights.zero_points is not None:
            arrays["zero_points"] = weights.zero_points
        with open(self._folder / f"{index}.npz", "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _own_index(self, name: str) -> int:
        """Where a linear's weights go: a place that no other linear has."""
        index = self._index.get(name)
        if index is None or len(self._named[index]) > 1:
            if index is not None:
                self._named[index].remove(name)
            index = len(self._named)
            self._named.append([name])
            self._index[name] = index
        return index

    def share(self, name: str, other: str) -> None:
        """Let a linear that has none yet have the weights of another; they are kept once."""
        self._index[name] = self._index[other]
        self._half[name] = self._half[other]
        self._named[self._index[name]].append(name)

    def first(self, name: str) -> str:
        """The first of the linears that have the same weights, which may be this one."""
        return self._named[self._index[name]][0]

    def is_shared(self, name: str) -> bool:
        """Whether another linear has the same weights."""
        return len(self._named[self._index[name]]) > 1

    def has_half_scales(self, name: str) -> bool:
        """Whether float16 holds all scales of one linear exactly, without reading them."""
        return self._half[name]

    def get(self, name: str) -> GroupWeights:
        """Read one linear's weights back, exactly as put."""
        with np.load(self._folder / f"{self._index[name]}.npz") as data:
            k, block_size, bits = (int(item) for item in data["about"])
            packed = data["packed"]
            codes = packed
            if bits == 4:
                codes = np.empty((k, packed.shape[1]), np.uint8)
                codes[0::2] = packed & 15
                codes[1::2] = packed[: k // 2] >> 4
            zero_points = data["zero_points"] if "zero_points" in data else None
            return GroupWeights(codes, data["scales"], zero_points, block_size, bits)

    def remove(self) -> None:
        """Delete the folder with everything in it."""
        shutil.rmtree(self._folder)
