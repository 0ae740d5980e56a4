"""Means with their standard errors, from sums over independent parts (windows, passages).

Tokens of one window are not independent of each other, so no error is taken over tokens: a window
is one draw, and a mean over tokens is the ratio of two sums over windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A metric of a sample of text, and how far another sample's would be from it.

    Attributes:
        value: the metric.
        standard_error: one standard deviation of it; None where the sample is too small to say.
    """

    value: float
    standard_error: float | None


def ratio_of_sums(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """sum(sums) / sum(counts) over independent parts, as the mean over tokens of windows.

    With r the ratio and m parts, the error is that of the ratio's linearization (delta method):
    sqrt(m / (m - 1) * sum((sums_i - r * counts_i)^2)) / sum(counts). Where all counts are
    equal that is the usual sample standard deviation over sqrt(m).

    Args:
        sums: of each part, any unit; may be infinite.
        counts: of each part, not all 0.

    Returns:
        The ratio; its error is None for a single part or an infinite ratio.
    """
    s, n = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    ratio = sum(sums) / sum(counts)
    if len(s) < 2 or not math.isfinite(ratio):
        return Estimate(ratio, None)
    spread = math.sqrt(len(s) / (len(s) - 1) * float(np.square(s - ratio * n).sum()))
    return Estimate(ratio, spread / float(n.sum()))


def exponential(estimate: Estimate) -> Estimate:
    """The exponential of an estimate; its error is exp(value) times the estimate's (delta method).

    Infinite where a double cannot hold it.
    """
    value, error = estimate.value, estimate.standard_error
    result = math.exp(value) if value < 700 else math.inf  # exp overflows a double at 709
    finite = math.isfinite(result) and error is not None
    return Estimate(result, result * error if finite and error is not None else None)


def proportion(hits: int, trials: int) -> Estimate:
    """Share of independent trials that succeeded, with the error sqrt(p (1 - p) / n).

    Args:
        hits: successes.
        trials: at least 1.
    """
    p = hits / trials
    return Estimate(p, math.sqrt(p * (1 - p) / trials))
