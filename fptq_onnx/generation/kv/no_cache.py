"""Sequences of a model without a KV cache: every step feeds each sequence from its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.runtime.decoder import Decoder


class NoCache:
    """See the module and `SequenceCache`."""

    def __init__(self, decoder: Decoder, *, max_sequences: int) -> None:
        """Begin without sequences.

        Args:
            decoder: the model.
            max_sequences: sequences at a time.
        """
        self._decoder = decoder
        self._max_sequences = max_sequences
        self._ids: list[list[int]] = []

    @property
    def lengths(self) -> tuple[int, ...]:
        """See SequenceCache."""
        return tuple(len(ids) for ids in self._ids)

    @property
    def max_sequences(self) -> int:
        """See SequenceCache."""
        return self._max_sequences

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        logits = self._logits(ids)
        self._ids.append(list(ids))
        return logits

    def extend(self, slot: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        self._ids[slot] = [*self._ids[slot], *ids]
        return self._logits(self._ids[slot])

    def truncate(self, slot: int, length: int) -> None:
        """See SequenceCache."""
        del self._ids[slot][length:]

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        return np.stack([self.extend(slot, [token]) for slot, token in enumerate(ids)])

    def remove(self, slot: int) -> None:
        """See SequenceCache."""
        last = self._ids.pop()
        if slot < len(self._ids):
            self._ids[slot] = last

    def _logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        step = self._decoder.forward(np.asarray(ids, np.int64)[None])
        assert step.logits is not None
        last: NDArray[np.float32] = step.logits[0, -1]
        return last
