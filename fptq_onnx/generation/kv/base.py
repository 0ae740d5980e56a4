"""What generation needs of a model: sequences, each with the tokens it was fed so far.

Strategies, by what the graph allows:

| | when | a decode step |
|---|---|---|
| SharedBuffer | GroupQueryAttention, past and present in one buffer | one run, copies nothing |
| LeftPadded | another attention, with an input for positions | one run; joining and leaving copy |
| PerSequence | any other KV cache | one run for each sequence, copies nothing |
| NoCache | no KV cache | feeds every sequence anew: slow |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.runtime.decoder_io import DecoderIO

# A longer prompt is fed in pieces: activations stay small, and an interrupt is seen in between.
CHUNK = 512


class SequenceCache(Protocol):
    """Sequences in slots 0 .. n-1. Logits are float32, of the last token fed."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each sequence holds."""

    @property
    def max_sequences(self) -> int:
        """Sequences that can be held at a time."""

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Add a sequence, the last, and feed its tokens; returns logits [vocabulary]."""

    def extend(self, slot: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed more tokens to one sequence; returns logits [vocabulary]."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on."""

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed one token to each sequence; returns logits [sequences, vocabulary]."""

    def remove(self, slot: int) -> None:
        """Drop a sequence; the last sequence takes its place."""


def pieces(ids: Sequence[int], io: DecoderIO) -> list[NDArray[np.int64]]:
    """A prompt in the pieces it is fed in, each int64 [1, n]."""
    size = io.fixed_sequence or CHUNK
    array = np.asarray(ids, np.int64)[None]
    return [array[:, start : start + size] for start in range(0, array.shape[1], size)]
