"""What generation needs of a model: rows, each a sequence with the tokens it was fed so far.

Strategies, by what the graph allows:

| | when | a decode step |
|---|---|---|
| SharedRows | GroupQueryAttention, past and present in one buffer | one run, copies nothing |
| PaddedRows | another attention, with an input for positions | one run; joining and leaving copy |
| SeparateRows | any other KV cache | one run for each row, copies nothing |
| RefedRows | no KV cache | feeds every sequence anew: slow |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.runtime.decoder_io import DecoderIO

# A longer prompt is fed in pieces: activations stay small, and an interrupt is seen in between.
CHUNK = 512


class CacheRows(Protocol):
    """Rows 0 .. n-1 of sequences. Logits are float32, of the last token fed."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds."""

    @property
    def max_rows(self) -> int:
        """Rows that can be held at a time."""

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Add a row, the last, and feed its tokens; returns logits [vocabulary]."""

    def extend(self, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed more tokens to one row; returns logits [vocabulary]."""

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's tokens from `length` on."""

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed one token to each row; returns logits [rows, vocabulary]."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""


def pieces(ids: Sequence[int], io: DecoderIO) -> list[NDArray[np.int64]]:
    """A prompt in the pieces it is fed in, each int64 [1, n]."""
    size = io.fixed_sequence or CHUNK
    array = np.asarray(ids, np.int64)[None]
    return [array[:, start : start + size] for start in range(0, array.shape[1], size)]
