"""Rows of a model without a KV cache: every step feeds each sequence from its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.runtime.decoder import Decoder


class RefedRows:
    """See the module and `CacheRows`."""

    def __init__(self, decoder: Decoder, *, max_rows: int) -> None:
        """Begin without rows.

        Args:
            decoder: the model.
            max_rows: rows at a time.
        """
        self._decoder = decoder
        self._max_rows = max_rows
        self._ids: list[list[int]] = []

    @property
    def lengths(self) -> tuple[int, ...]:
        """See CacheRows."""
        return tuple(len(ids) for ids in self._ids)

    @property
    def max_rows(self) -> int:
        """See CacheRows."""
        return self._max_rows

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        logits = self._logits(ids)
        self._ids.append(list(ids))
        return logits

    def extend(self, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        self._ids[row] = [*self._ids[row], *ids]
        return self._logits(self._ids[row])

    def truncate(self, row: int, length: int) -> None:
        """See CacheRows."""
        del self._ids[row][length:]

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See CacheRows."""
        return np.stack([self.extend(row, [token]) for row, token in enumerate(ids)])

    def remove(self, row: int) -> None:
        """See CacheRows."""
        last = self._ids.pop()
        if row < len(self._ids):
            self._ids[row] = last

    def _logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        step = self._decoder.forward(np.asarray(ids, np.int64)[None])
        assert step.logits is not None
        last: NDArray[np.float32] = step.logits[0, -1]
        return last
