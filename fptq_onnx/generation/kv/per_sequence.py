"""Sequences that are fed one after the other, each with a KV cache of its own.

For graphs that cannot be told which positions are padding: those with GroupQueryAttention that
cannot share its buffers (it expects padding at the end), and those without an input for positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.generation.kv.base import pieces
from fptq_onnx.generation.kv.ort_values import ort_value, view
from fptq_onnx.runtime.decoder import Cache, Decoder


class PerSequence:
    """See the module and `SequenceCache`."""

    def __init__(self, decoder: Decoder, *, max_sequences: int) -> None:
        """Begin without sequences.

        Args:
            decoder: with a KV cache.
            max_sequences: sequences at a time.
        """
        self._decoder = decoder
        self._max_sequences = max_sequences
        self._caches: list[Cache] = []

    @property
    def lengths(self) -> tuple[int, ...]:
        """See SequenceCache."""
        return tuple(cache.length for cache in self._caches)

    @property
    def max_sequences(self) -> int:
        """See SequenceCache."""
        return self._max_sequences

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        logits, cache = feed(self._decoder, ids, None)
        self._caches.append(cache)
        return logits

    def extend(self, slot: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        logits, self._caches[slot] = feed(self._decoder, ids, self._caches[slot])
        return logits

    def truncate(self, slot: int, length: int) -> None:
        """See SequenceCache."""
        cache = self._caches[slot]
        if length >= cache.length:
            return
        kept = {}
        for tensor in self._decoder.io.cache:
            part = (*[slice(None)] * tensor.sequence_axis, slice(0, length))
            # A copy of its own: the view's memory goes with the cache.
            shorter = view(cache.values[tensor.past])[part].copy()
            kept[tensor.past] = ort_value(shorter, tensor.dtype)
        self._caches[slot] = Cache(length, 1, kept)

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See SequenceCache."""
        return np.stack([self.extend(slot, [token]) for slot, token in enumerate(ids)])

    def remove(self, slot: int) -> None:
        """See SequenceCache."""
        last = self._caches.pop()
        if slot < len(self._caches):
            self._caches[slot] = last


def feed(
    decoder: Decoder, ids: Sequence[int], cache: Cache | None
) -> tuple[NDArray[np.float32], Cache]:
    """Feed tokens after a cache of one sequence; logits [vocabulary] of the last, and the cache."""
    for piece in pieces(ids, decoder.io):
        step = decoder.forward(piece, cache)
        cache = step.cache
    assert step.logits is not None
    return step.logits[0, -1], step.cache
