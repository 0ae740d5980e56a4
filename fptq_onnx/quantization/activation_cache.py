"""Intermediate values of a model between segments: in memory up to a budget, then on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

# Bytes kept in memory: two values of 4096 channels, each in both models, on the 48 samples of 256
# tokens that are the default.
BUDGET = 1 << 30

# ONNX Runtime's own value holds what NumPy has no array for: a sequence of tensors.
Held: TypeAlias = NDArray[Any] | ort.OrtValue


class ValueStore:
    """Arrays by (stream, value name, batch)."""

    def __init__(self, folder: Path, budget: int = BUDGET) -> None:
        """Spill to `folder`, which is made if needed and emptied by `drop`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._budget = budget
        self._arrays: dict[tuple[str, str], dict[int, Held | Path]] = {}
        self._held = 0
        self._files = 0

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._arrays

    def put(self, side: str, name: str, batch: int, array: Held) -> None:
        """Keep a value, in the place of any that was there; what is no array stays in memory.

        Raises:
            OSError: the disk is full or not writable.
        """
        batches = self._arrays.setdefault((side, name), {})
        if batch in batches:
            self._forget(batches.pop(batch))
        if not isinstance(array, np.ndarray):
            batches[batch] = array
            return
        if self._held + array.nbytes <= self._budget:
            self._held += array.nbytes
            batches[batch] = array
            return
        path = self._folder / f"{self._files}.npy"
        self._files += 1
        np.save(path, array, allow_pickle=False)
        batches[batch] = path

    def get(self, side: str, name: str, batch: int) -> Held:
        """The value; read-only."""
        found = self._arrays[side, name][batch]
        if isinstance(found, Path):
            loaded: NDArray[Any] = np.load(found, allow_pickle=False)
            return loaded
        return found

    def drop(self, side: str, name: str) -> None:
        """Forget a value in all batches; nothing happens if it is not there."""
        for found in self._arrays.pop((side, name), {}).values():
            self._forget(found)

    def _forget(self, found: Held | Path) -> None:
        if isinstance(found, Path):
            found.unlink()
        elif isinstance(found, np.ndarray):
            self._held -= found.nbytes
