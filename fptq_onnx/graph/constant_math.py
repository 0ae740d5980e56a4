"""Arithmetic on constants as a graph does it, but for half floats, which it does in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def in_float32(op: Callable[..., Any], *arrays: Array) -> Array:
    """The result in the type of the first array; half floats would overflow, or lose more."""
    first = arrays[0].dtype
    wide = np.float32 if first.itemsize == 2 and first.kind in "fV" else first  # V: bfloat16
    result = op(*(array.astype(wide, copy=False) for array in arrays))
    return np.asarray(result).astype(first, copy=False)


def power(base: Array, exponent: Array) -> Array:
    """Base to the exponent, of whatever type, in the type of the base."""
    return in_float32(lambda b: np.power(b, exponent), base)


def root_of_squares(array: NDArray[Any], axis: tuple[int, ...], *, keepdims: bool) -> Array:
    """The Euclidean norm along axes."""
    squares = np.sum(np.square(array), axis=axis, keepdims=keepdims)
    return np.asarray(np.sqrt(squares))


def pick(array: Array, picks: NDArray[Any], axis: int) -> Array:
    """Entries along an axis by number, negative from the end; of one number a view."""
    if picks.ndim == 0:
        return array[(slice(None),) * axis + (int(picks),)]
    return np.take(array, picks, axis)
