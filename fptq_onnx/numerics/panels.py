"""The weight layout of the fptq ops, version 1: panels of 64 output columns.

Chosen so that every ISA reads the same bytes in order (docs/kernels.md):

* N is cut into P = ceil(N / 64) panels; missing columns have scale 0.
* K is cut into S = ceil(K / 8) steps of 8 input channels; missing channels hold code 0 and meet
  activations of 0.
* A step of a panel is a line of 256 bytes: byte 4 * column + i holds code[8 * step + i] in its low
  nibble and code[8 * step + 4 + i] in its high nibble, i in 0..3. So a 32-bit lane is one column
  and four consecutive input channels, what dot-product instructions consume.

Codes of 8 bits take a line of 512 bytes: byte 4 * column + i is code[8 * step + i], byte
256 + 4 * column + i is code[8 * step + 4 + i].

    packed uint8 [P, S, 256 or 512]      scales float [P, G, 64]      zero_points uint8 [P, G, 64]

block_size must be a multiple of 8 (or -1), so that no step straddles two groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 1
PANEL_COLUMNS = 64
STEP_CHANNELS = 8


def panel_count(n: int) -> int:
    """P, the number of panels for N output columns."""
    return -(-n // PANEL_COLUMNS)


def step_count(k: int) -> int:
    """S, the number of 8-channel steps for K input channels."""
    return -(-k // STEP_CHANNELS)


def line_bytes(bits: int) -> int:
    """Bytes of one step of one panel: 256 for codes of 4 bits, 512 for 8."""
    return PANEL_COLUMNS * STEP_CHANNELS * bits // 8


def pack_codes(codes: NDArray[np.uint8], bits: int = 4) -> NDArray[np.uint8]:
    """Pack codes uint8 [K, N] (below 2**bits) -> packed uint8 [P, S, 256 or 512]."""
    k, n = codes.shape
    panels, steps = panel_count(n), step_count(k)
    packed = np.zeros((panels, steps, line_bytes(bits)), np.uint8)
    for p in range(panels):  # one panel at a time keeps the padded copy small
        columns = codes[:, p * PANEL_COLUMNS : (p + 1) * PANEL_COLUMNS]
        padded = np.zeros((steps * STEP_CHANNELS, PANEL_COLUMNS), np.uint8)
        padded[:k, : columns.shape[1]] = columns
        halves = padded.reshape(steps, 2, 4, PANEL_COLUMNS)  # step, low/high, i, column
        if bits == 4:
            halves = np.bitwise_or(halves[:, :1], np.left_shift(halves[:, 1:], np.uint8(4)))
        packed[p] = halves.transpose(0, 1, 3, 2).reshape(steps, -1)
    return packed


def unpack_codes(packed: NDArray[np.uint8], k: int, n: int) -> NDArray[np.uint8]:
    """The inverse of pack_codes: packed uint8 [P, S, 256 or 512] -> codes uint8 [K, N]."""
    panels, steps, width = packed.shape
    halves = packed.reshape(panels, steps, -1, PANEL_COLUMNS, 4)
    if width == line_bytes(4):
        halves = np.concatenate([halves & 15, halves >> 4], axis=2)
    codes = halves.transpose(1, 2, 4, 0, 3)  # step, half, i, panel, column
    return codes.reshape(steps * STEP_CHANNELS, panels * PANEL_COLUMNS)[:k, :n]


def pack_group_values(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Per-group values [G, N] (scales or zero points) -> [P, G, 64], missing columns 0."""
    groups, n = values.shape
    padded = np.zeros((groups, panel_count(n) * PANEL_COLUMNS), values.dtype)
    padded[:, :n] = values
    return np.ascontiguousarray(padded.reshape(groups, -1, PANEL_COLUMNS).transpose(1, 0, 2))


def unpack_group_values(packed: NDArray[np.generic], n: int) -> NDArray[np.generic]:
    """The inverse of pack_group_values: [P, G, 64] -> [G, N]."""
    return packed.transpose(1, 0, 2).reshape(packed.shape[1], -1)[:, :n]
