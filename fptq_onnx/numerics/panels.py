"""The weight layout of the fptq ops, version 1: panels of 64 output columns.

Chosen so that every ISA reads the same bytes in order (docs/kernels.md):

* N is cut into P = ceil(N / 64) panels; missing columns have scale 0.
* K is cut into S = ceil(K / 8) steps of 8 input channels; missing channels hold code 0 and meet
  activations of 0.
* A step of a panel is a line of 256 bytes: byte 4 * column + i holds code[8 * step + i] in its low
  nibble and code[8 * step + 4 + i] in its high nibble, i in 0..3. So a 32-bit lane is one column
  and four consecutive input channels, what dot-product instructions consume.

    packed uint8 [P, S, 256]      scales float32 [P, G, 64]      zero_points uint8 [P, G, 64]

block_size must be a multiple of 8 (or -1), so that no step straddles two groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 1
PANEL_COLUMNS = 64
STEP_CHANNELS = 8
LINE_BYTES = PANEL_COLUMNS * STEP_CHANNELS // 2


def panel_count(n: int) -> int:
    """P, the number of panels for N output columns."""
    return -(-n // PANEL_COLUMNS)


def step_count(k: int) -> int:
    """S, the number of 8-channel steps for K input channels."""
    return -(-k // STEP_CHANNELS)


def pack_codes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes uint8 [K, N] (0..15) -> packed uint8 [P, S, 256]."""
    k, n = codes.shape
    panels, steps = panel_count(n), step_count(k)
    packed = np.zeros((panels, steps, LINE_BYTES), np.uint8)
    for p in range(panels):  # one panel at a time keeps the padded copy small
        columns = codes[:, p * PANEL_COLUMNS : (p + 1) * PANEL_COLUMNS]
        padded = np.zeros((steps * STEP_CHANNELS, PANEL_COLUMNS), np.uint8)
        padded[:k, : columns.shape[1]] = columns
        halves = padded.reshape(steps, 2, 4, PANEL_COLUMNS)  # step, low/high, i, column
        lanes = halves[:, 0] | (halves[:, 1] << 4)  # step, i, column
        packed[p] = lanes.transpose(0, 2, 1).reshape(steps, LINE_BYTES)
    return packed


def unpack_codes(packed: NDArray[np.uint8], k: int, n: int) -> NDArray[np.uint8]:
    """The inverse of pack_codes: packed uint8 [P, S, 256] -> codes uint8 [K, N]."""
    panels, steps, _ = packed.shape
    lanes = packed.reshape(panels, steps, PANEL_COLUMNS, 4).transpose(1, 3, 0, 2)
    codes = np.empty((steps, 2, 4, panels * PANEL_COLUMNS), np.uint8)
    flat = lanes.reshape(steps, 4, panels * PANEL_COLUMNS)
    codes[:, 0] = flat & 15
    codes[:, 1] = flat >> 4
    return codes.reshape(steps * STEP_CHANNELS, panels * PANEL_COLUMNS)[:k, :n]


def pack_group_values(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Per-group values [G, N] (scales or zero points) -> [P, G, 64], missing columns 0."""
    groups, n = values.shape
    padded = np.zeros((groups, panel_count(n) * PANEL_COLUMNS), values.dtype)
    padded[:, :n] = values
    return np.ascontiguousarray(padded.reshape(groups, -1, PANEL_COLUMNS).transpose(1, 0, 2))
