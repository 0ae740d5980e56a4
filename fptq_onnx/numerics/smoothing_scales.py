"""Smoothing scales s of a linear's input channels: x / s is what is rounded, s W its weight.

    none              1
    lae               max|x| / log2(2 + max|x|)                 FPTQ, arXiv 2308.15987, section 3.2
    smoothquant:a     max|x|^a / max|W row|^(1 - a)             SmoothQuant, arXiv 2211.10438
    balance:a         rms(x)^a / rms(W row)^(1 - a)

4-bit weights are the coarser side, so what helps most is rows of W of like size: `balance` with a
small exponent. (With a = 0 all rows get the same root mean square.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fptq_onnx.numerics.log_equalization import MIN_CHANNEL_ABSMAX, equalization_scale

NONE = "none"
LAE = "lae"
SMOOTHQUANT = "smoothquant:0.5"
CANDIDATES = (NONE, LAE, "balance:0", "balance:0.125", "balance:0.25", "balance:0.5")


@dataclass(frozen=True)
class ChannelSizes:
    """What the formulas need of each input channel, [K] each.

    absmax, rms: of the activation, over the calibration data.
    weight_absmax, weight_rms: of the rows of W, over all linears that read the activation.
    """

    absmax: NDArray[np.floating]
    rms: NDArray[np.floating]
    weight_absmax: NDArray[np.floating]
    weight_rms: NDArray[np.floating]


def weight_sizes(
    weights: Iterable[NDArray[np.float32]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """weight_absmax and weight_rms [K] of matrices [K, N] that share their input.

    Each is looked at once, so they may be read one after the other.
    """
    absmax, squares, columns = [], [], 0
    for w in weights:
        absmax.append(np.abs(w).max(axis=1))
        squares.append(np.square(w, dtype=np.float64).sum(axis=1))
        columns += w.shape[1]
    return (
        np.max(absmax, axis=0).astype(np.float64),
        np.sqrt(np.sum(squares, axis=0) / columns),
    )


def parse_equalization(equalization: str) -> tuple[str, float]:
    """Kind and exponent of a formula; the exponent is 0 where it has none.

    Raises:
        ValueError: no such formula.
    """
    if equalization in (NONE, LAE):
        return equalization, 0.0
    kind, _, text = equalization.partition(":")
    try:
        exponent = float(text)
    except ValueError:
        exponent = -1.0
    if kind not in ("smoothquant", "balance") or not 0 <= exponent <= 1:
        raise ValueError(
            f"no equalization {equalization!r}: use none, lae, smoothquant:a or balance:a with a "
            "in 0..1"
        )
    return kind, exponent


def smoothing_scale(equalization: str, sizes: ChannelSizes) -> NDArray[np.float32]:
    """S [K] float32, positive; channels without activity or without weights get the middle of it.

    Args:
        equalization: one of this module's.
        sizes: of the channels.

    Raises:
        ValueError: no such formula.
    """
    kind, exponent = parse_equalization(equalization)
    if kind == NONE:
        return np.ones(len(sizes.absmax), np.float32)
    if kind == LAE:
        return equalization_scale(sizes.absmax)
    x, w = (
        (sizes.absmax, sizes.weight_absmax)
        if kind == "smoothquant"
        else (sizes.rms, sizes.weight_rms)
    )
    # The ranges may come from other data than the mean squares: x may be 0 all the same.
    alive = (sizes.absmax >= MIN_CHANNEL_ABSMAX) & (x > 0) & (w > w.max(initial=0) * 1e-6)
    if not alive.any():
        return np.ones(len(x), np.float32)
    logs = exponent * np.log(np.where(alive, x, 1.0)) - (1 - exponent) * np.log(
        np.where(alive, w, 1.0)
    )
    middle = float(np.median(logs[alive]))
    # Around 1, so that gains keep their size; and no channel beyond what a float16 gain can take.
    logs = np.clip(np.where(alive, logs - middle, 0.0), -8.0, 8.0)
    return np.exp(logs).astype(np.float32)
