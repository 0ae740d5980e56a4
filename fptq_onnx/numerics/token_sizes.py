"""What one scale for all tokens costs each of them, from the sizes of the tokens alone.

    size of a token      a_t = max_j |x_tj|
    step of the scale    A / 127, where A is the largest size
    loss of a token      min(1, A / (127 a_t))

A step leaves an error of step / sqrt(12) in every value. A token whose root mean square is
a_t / sqrt(12), as of values spread evenly up to a_t, so has a relative error of its loss; 1 is a
token that is rounded away. The mean over tokens counts each alike: one token of 10^4 times the size
of the rest ("massive activations", arXiv 2402.17762) makes it 1, and in no sum of squares is it
seen.

Sizes are kept as counts in quarters of an octave, which add up exactly over sets of data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PER_OCTAVE = 4
_LOWEST = -64  # log2 of the first bin's lower end; what is smaller is counted there
BINS = 128 * _PER_OCTAVE
# Without massive tokens the mean loss is 0.08 at most in the models looked at.
LARGEST_LOSS = 0.125


def count_sizes(sizes: NDArray[np.floating]) -> NDArray[np.int64]:
    """Counts [BINS] of the sizes of tokens [tokens], finite; tokens that are all zero do not count.

    Bin i holds sizes from 2^(i / 4 - 64) up to the next bin's.
    """
    alive = np.asarray(sizes, np.float64)
    alive = alive[alive > 0]
    bins = np.floor(_PER_OCTAVE * (np.log2(alive) - _LOWEST)).astype(np.int64)
    return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS).astype(np.int64)


def mean_loss(counts: NDArray[np.integer], full: float) -> float:
    """The mean over tokens of what a static scale that maps `full` to 127 costs them, 0..1.

    Args:
        counts: of `count_sizes`, any tokens that the scale is for.
        full: the largest magnitude the scale is for; sizes and it are of the same, divided or not.

    Returns:
        0 where no token counts.
    """
    total = int(counts.sum())
    if not total:
        return 0.0
    sizes = np.exp2((np.arange(BINS) + 0.5) / _PER_OCTAVE + _LOWEST)
    return float((counts * np.minimum(1.0, full / (127.0 * sizes))).sum() / total)


def loses_tokens(counts: NDArray[np.integer] | None, full: float) -> bool:
    """Whether `mean_loss` is more than LARGEST_LOSS; no where the sizes are not known."""
    return counts is not None and mean_loss(counts, full) > LARGEST_LOSS
